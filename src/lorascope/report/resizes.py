"""A resize as text and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from lorascope.compress import Resized
from lorascope.conversion import LossReport
from lorascope.report.listed import first_of, print_listed
from lorascope.report.numbers import counted
from lorascope.report.tables import safe

SCHEMA_VERSION = 1


def resized_as_dict(resized: Resized, written: LossReport) -> dict[str, Any]:
    """What was written and how far it is from the source, per site and whole."""
    allocation = resized.allocation
    return {
        "schema_version": SCHEMA_VERSION,
        "output": written.target,
        "format": written.target_format,
        "relative_error": resized.relative_error,
        "parameters_before": resized.parameters_before,
        "parameters": resized.parameters,
        "budget": None
        if allocation is None
        else {
            "parameters": allocation.budget,
            "used": allocation.parameters,
            "kept": allocation.kept,
            "bound": allocation.bound,
            "relative_error": allocation.relative_error,
            "least_relative_error": allocation.least_error,
        },
        "sites": {
            name: {
                "rank_before": site.rank_before,
                "rank": site.rank,
                "norm": site.norm,
                "relative_error": site.relative_error,
            }
            for name, site in resized.sites.items()
        },
        "left_out": list(resized.left_out),
        "unchanged": list(resized.unchanged),
        "lost": [{"what": loss.what, "why": loss.why} for loss in written.lost],
    }


def resized_as_text(resized: Resized, written: LossReport, console: Console) -> None:
    """Print ranks, sizes and errors."""
    sites = resized.sites
    kept = {name: site for name, site in sites.items() if site.rank}
    before, after = _span([site.rank_before for site in sites.values()]), _span([site.rank for site in kept.values()])
    console.print(
        f"{counted(len(kept), 'site')}, rank {before} → {after}: "
        f"{safe(written.target, 4096)} ({written.target_format})",
        soft_wrap=True,
    )
    share = resized.parameters / max(resized.parameters_before, 1)
    console.print(f"parameters: {resized.parameters_before:,} → {resized.parameters:,} ({share:.1%})")
    worst, site = max(sites.items(), key=lambda item: item[1].relative_error)
    where = f", most at {safe(worst)}: {site.relative_error:.3g}" if site.relative_error > 0 else ""
    console.print(f"relative error of ΔW: {resized.relative_error:.3g}{where}", soft_wrap=True)
    if (allocation := resized.allocation) is not None:
        console.print(
            f"of the budget of {allocation.budget:,} parameters {allocation.parameters:,} are used; no choice of ranks "
            f"within it has a relative error below {allocation.least_error:.3g}",
            soft_wrap=True,
        )
    for title, names in (("left out, of rank 0", resized.left_out), ("unchanged", resized.unchanged)):
        if names:
            console.print(Text(f"{title}: {counted(len(names), 'site')}: {first_of(names)}", "yellow"), soft_wrap=True)
    print_listed("lost", (f"{loss.what}: {loss.why}" for loss in written.lost), console)


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
