"""An extraction as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from lorascope.compress import Extracted
from lorascope.report.listed import SHOWN
from lorascope.report.numbers import counted
from lorascope.report.tables import safe

SCHEMA_VERSION = 1


def extracted_as_dict(extracted: Extracted, output: str) -> dict[str, Any]:
    """What was written, how far it is from the difference, and what changed beside it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "output": output,
        "relative_error": extracted.relative_error,
        "sites": {
            name: {"rank": site.rank, "norm": site.norm, "relative_error": site.relative_error}
            for name, site in extracted.sites.items()
        },
        "others": dict(extracted.others),
        "skipped": dict(extracted.skipped),
        "unchanged": extracted.unchanged,
    }


def extracted_as_text(extracted: Extracted, output: str, console: Console) -> None:
    """Print ranks and errors, and what changed and is not in the adapter."""
    ranks = sorted({site.rank for site in extracted.sites.values()})
    span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    console.print(
        f"{counted(len(extracted.sites), 'site')} of rank {span}: {safe(output, 4096)}; "
        f"{counted(extracted.unchanged, 'tensor')} alike",
        soft_wrap=True,
    )
    worst, site = max(extracted.sites.items(), key=lambda item: item[1].relative_error)
    where = f", most at {safe(worst)}: {site.relative_error:.3g}"
    console.print(f"relative error against the difference: {extracted.relative_error:.3g}{where}", soft_wrap=True)
    _listed("changed and not in the adapter, being no weights of layers", extracted.others, console)
    _listed("changed and not asked for", extracted.skipped, console)


def _listed(title: str, changes: Mapping[str, float], console: Console) -> None:
    if not changes:
        return
    largest = sorted(changes.items(), key=lambda item: -item[1])[:SHOWN]
    shown = ", ".join(f"{safe(name)} (‖·‖ {size:.3g})" for name, size in largest)
    text = f"{title}: {counted(len(changes), 'tensor')}: {shown}" + ", …" * (len(changes) > SHOWN)
    console.print(Text(text, "yellow"), soft_wrap=True)
