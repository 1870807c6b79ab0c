"""A merge, and the family of merge methods, as text and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorascope.merge import METHODS, LearnedWeights, Merged
from lorascope.report.listed import first_of, print_listed
from lorascope.report.numbers import counted
from lorascope.report.tables import safe

SCHEMA_VERSION = 1


def methods_as_dicts() -> dict[str, Any]:
    """Every method: what it computes, where it is from, what it declares, its options."""
    found: list[dict[str, Any]] = []
    for member in METHODS:
        fields: Any = dataclasses.fields(member)  # type: ignore[arg-type]  # members are dataclasses
        found.append(
            {
                "name": member.name,
                "formula": member.formula,
                "reference": member.reference,
                "invariance": member.invariance,
                "is_symmetric": member.is_symmetric,
                "is_idempotent": member.is_idempotent,
                "is_experimental": member.is_experimental,
                "options": {field.name: field.default for field in fields if not callable(field.default)},
            }
        )
    return {"schema_version": SCHEMA_VERSION, "methods": found}


def methods_as_text(console: Console) -> None:
    """Print which methods there are."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for name in ("method", "formula", "invariant to", "options", "reference"):
        table.add_column(name, overflow="fold", no_wrap=name == "method")
    for one in methods_as_dicts()["methods"]:
        star = " *" if one["is_experimental"] else ""
        options = " ".join(f"{name}={_shown(value)}" for name, value in one["options"].items())
        table.add_row(one["name"] + star, one["formula"], one["invariance"], options, one["reference"])
    console.print(table)
    console.print("\n* experimental: no merge of real adapters by it has been measured yet.")


def _shown(value: Any) -> str:
    """As it would be typed."""
    return ",".join(value) if isinstance(value, tuple) else str(value)


def merged_as_dict(merged: Merged, output: str, method: str, learned: LearnedWeights | None = None) -> dict[str, Any]:
    """What was written and how far it is from the exact result, per site and whole; null where nothing was learned."""
    return {
        "schema_version": SCHEMA_VERSION,
        "output": output,
        "method": method,
        "relative_error": merged.relative_error,
        "sites": {
            name: {"rank": site.rank, "norm": site.norm, "relative_error": site.relative_error}
            for name, site in merged.sites.items()
        },
        "missing": {name: list(sites) for name, sites in merged.missing.items()},
        "left_out": list(merged.left_out),
        "learned": None
        if learned is None
        else {
            "weights": learned.weights.tolist(),
            "loss": learned.loss,
            "loss_of_base": learned.first,
            "evaluations": learned.evaluations,
        },
    }


def merged_as_text(
    merged: Merged, output: str, method: str, console: Console, learned: LearnedWeights | None = None
) -> None:
    """Print what was written, its ranks and its error, and the sites that moved most."""
    ranks = sorted({site.rank for site in merged.sites.values()})
    span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    console.print(
        f"{method} → {safe(output, 4096)}: {counted(len(merged.sites), 'site')} of rank {span}", soft_wrap=True
    )
    worst, site = max(merged.sites.items(), key=lambda item: item[1].relative_error)
    where = f", most at {safe(worst)}: {site.relative_error:.3g}" if site.relative_error > 0 else ""
    console.print(f"relative error against the exact result: {merged.relative_error:.3g}{where}", soft_wrap=True)
    if learned is not None:
        weights = ", ".join(f"{weight:.3g}" for weight in learned.weights)
        console.print(
            f"weights learned in {counted(learned.evaluations, 'evaluation')}: {weights}; "
            f"loss {learned.loss:.4g}, without the adapters {learned.first:.4g}",
            soft_wrap=True,
        )
    for name, sites in merged.missing.items():
        text = f"{safe(name)} has nothing at {counted(len(sites), 'site')}: {first_of(sites)}"
        console.print(Text(text, "dim"), soft_wrap=True)
    print_listed("left out", merged.left_out, console)
