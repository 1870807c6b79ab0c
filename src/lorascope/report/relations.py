"""Explanations of merges and lineages as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from lorascope.report.listed import print_listed
from lorascope.report.numbers import DASH, counted
from lorascope.report.tables import safe
from lorascope.retrieve import Edge, MergeExplanation

SCHEMA_VERSION = 1


def explanation_as_dict(found: MergeExplanation, adapter: str, failures: Mapping[str, str]) -> dict[str, Any]:
    """The members with their weights, what they leave unexplained, and whether weights of any sign leave much less."""
    return {
        "schema_version": SCHEMA_VERSION,
        "adapter": adapter,
        "members": [{"path": part.name, "weight": part.weight, "share": part.share} for part in found.parts],
        "norm": found.norm,
        "rest": found.rest,
        "relative_rest": found.relative_rest,
        "weight_error": found.weight_error,
        "candidates": found.candidates,
        "signed": None
        if found.signed is None
        else {"members": len(found.signed.parts), "relative_rest": found.signed.relative_rest},
        "failures": dict(failures),
    }


def explanation_as_text(found: MergeExplanation, failures: Mapping[str, str], console: Console) -> None:
    """Print the same."""
    for part in found.parts:
        console.print(Text(f"{part.weight:10.6g}  {safe(part.name, 4096)}  ({part.share:.1%} of ‖ΔW‖)"), soft_wrap=True)
    error = DASH if found.weight_error is None else f"{found.weight_error:.2g}"
    console.print(
        f"unexplained: {found.relative_rest:.3g} of ‖ΔW‖ {found.norm:.6g}; weights to ±{error}; "
        f"{len(found.parts)} of {found.candidates} candidates",
        soft_wrap=True,
    )
    if found.signed is not None:
        text = (
            f"negative weights explain it far better: with --signed {found.signed.relative_rest:.3g} is unexplained, "
            f"of {counted(len(found.signed.parts), 'member')}"
        )
        console.print(Text(text, "yellow"), soft_wrap=True)
    _print_failures(failures, console)


def lineage_as_dict(edges: Sequence[Edge], count: int, failures: Mapping[str, str]) -> dict[str, Any]:
    """The edges with their evidence."""
    return {
        "schema_version": SCHEMA_VERSION,
        "adapters": count,
        "edges": [
            {
                "relation": edge.relation,
                "child": edge.child,
                "parents": list(edge.parents),
                "is_directed": edge.is_directed,
                "evidence": edge.evidence,
            }
            for edge in edges
        ],
        "failures": dict(failures),
    }


def lineage_as_text(edges: Sequence[Edge], count: int, failures: Mapping[str, str], console: Console) -> None:
    """Print an edge a line, and its evidence."""
    for edge in edges:
        arrow = "←" if edge.is_directed else "↔"
        parents = _sum_of(edge)
        evidence = ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in edge.evidence.items())
        console.print(Text(f"{edge.relation}: {safe(edge.child, 4096)} {arrow} {parents}"), soft_wrap=True)
        console.print(Text(f"    {evidence}", "dim"), soft_wrap=True)
    if any(not edge.is_directed for edge in edges):
        console.print(Text("↔: weights do not tell which of the two was made of the other", "dim"), soft_wrap=True)
    if any(edge.relation == "continued" for edge in edges):
        text = "continued: a guess, from a large cosine alone; the smaller norm is written last, as the likelier parent"
        console.print(Text(text, "dim"), soft_wrap=True)
    console.print(f"{counted(len(edges), 'relation')} among {counted(count, 'adapter')}")
    _print_failures(failures, console)


def _sum_of(edge: Edge) -> str:
    """The parents, with a minus where their weights are negative."""
    weights = edge.evidence.get("weights") or [1.0] * len(edge.parents)
    signs = ["−" if weight < 0 else "+" for weight in weights]
    terms = " ".join(f"{sign} {safe(parent, 4096)}" for sign, parent in zip(signs, edge.parents, strict=True))
    return terms.removeprefix("+ ")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return DASH if value is None else f"{value:.4g}"


def _print_failures(failures: Mapping[str, str], console: Console) -> None:
    print_listed("left out", failures.values(), console)
