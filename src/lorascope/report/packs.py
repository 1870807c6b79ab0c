"""A compression as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorascope.compress import Compressed
from lorascope.compress.joint import POOR
from lorascope.errors import LorascopeError
from lorascope.report.listed import print_listed, print_unread
from lorascope.report.numbers import counted
from lorascope.report.tables import safe

SCHEMA_VERSION = 1


def compressed_as_dict(
    results: Sequence[Compressed],
    ranks: Sequence[int | None],
    output: str | None,
    size: int | None,
    failures: Sequence[LorascopeError],
    alone: Compressed | None = None,
) -> dict[str, Any]:
    """Size against error for each rank that was tried, and the error of each adapter for the first.

    ``alone``: null, or the same of each adapter by itself, where all the others are poor.
    """
    rows = [_row(result, rank) for result, rank in zip(results, ranks, strict=True)]
    first = results[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "output": output,
        "output_bytes": size,
        "method": first.pack.method,
        "bits": first.pack.bits,
        "relative_error": rows[0]["relative_error"],
        "table": rows,
        "alone": None if alone is None else {**_row(alone, None), "clusters": None},
        "warnings": _warnings(results, alone),
        "adapters": {
            name: {"norm": own.norm, "relative_error": own.relative_error} for name, own in first.errors.items()
        },
        "left_out": list(first.left_out),
        "failures": [error.as_dict() for error in failures],
    }


def _row(result: Compressed, rank: int | None) -> dict[str, Any]:
    name, worst = result.worst
    return {
        "rank": rank,
        "clusters": max(len(result.pack.widths), 1),
        "bytes_before": result.nbytes_before,
        "bytes": result.nbytes,
        "relative_error": {"mean": result.mean_error, "worst": worst, "worst_adapter": name},
    }


def compressed_as_text(
    results: Sequence[Compressed],
    ranks: Sequence[int | None],
    output: str | None,
    size: int | None,
    failures: Sequence[LorascopeError],
    console: Console,
    alone: Compressed | None = None,
) -> None:
    """Print a table of size against relative error, whether it is worth having, and what was left out."""
    first = results[0].pack
    rounded = "" if first.bits is None else f", int{first.bits}"
    console.print(
        f"{counted(len(first.members), 'adapter')}, {counted(len(first.sites), 'site')}, {first.method}{rounded}"
    )
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for name in ("rank", "bytes", "of as stored", "mean error", "worst error", "of"):
        table.add_column(name, justify="left" if name == "of" else "right", no_wrap=True)
    table.add_row("as stored", f"{results[0].nbytes_before:,}", "100 %", "0", "0", "")
    for result, rank in zip(results, ranks, strict=True):
        name, worst = result.worst
        share = result.nbytes / max(result.nbytes_before, 1)
        row = ["all" if rank is None and first.method == "alone" else str(rank or 16), f"{result.nbytes:,}"]
        table.add_row(*row, f"{share:.3%}", f"{result.mean_error:.3g}", f"{worst:.3g}", Text(safe(name, 40)))
    console.print(table)
    if output is not None:
        console.print(f"written: {safe(output, 4096)}, {size:,} bytes with its header", soft_wrap=True)
    for text in _warnings(results, alone):
        console.print(Text(f"warning: {text}", "yellow"), soft_wrap=True)
    print_listed("left out", results[0].left_out, console)
    print_unread(failures, console)


def _warnings(results: Sequence[Compressed], alone: Compressed | None) -> list[str]:
    """What is wrong with packs that are all poor, and what to do: a sentence, or none."""
    if not all(one.is_poor for one in results):
        return []
    best = min(results, key=lambda one: one.mean_error)
    is_alone = best.pack.method == "alone"
    if best.mean_error > POOR:
        why = "the rank and the rounding lose much" if is_alone else "the bases they share lose much of these adapters"
        text = f"{why}: mean error {best.mean_error:.3g}"
        advice = "a larger --rank keeps more" if is_alone else "a larger --rank or more --clusters keep more"
    else:
        text = f"the pack is larger than what went in: {_share(best)}"
        advice = "--quantise int8 or int4, or a smaller --rank, makes it smaller"
        if not is_alone:
            text += ", shared bases being worth their size for many adapters only"
    if alone is not None and (alone.mean_error < POOR < best.mean_error or alone.nbytes < best.nbytes):
        rounded = "" if alone.pack.bits is None else f" --quantise int{alone.pack.bits}"
        text += f"; --method alone{rounded} has {_share(alone)} and a mean error of {alone.mean_error:.3g}"
    return [f"{text}; {advice}"]


def _share(result: Compressed) -> str:
    return f"{result.nbytes / max(result.nbytes_before, 1):.1%} of the bytes"
