"""A summary as text for a terminal. Names come from untrusted files, so control characters never reach the screen."""

from __future__ import annotations

import unicodedata
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lorascope.report.numbers import counted


def as_text(summary: dict[str, Any], console: Console, limit: int | None = 24) -> None:
    """Print a summary: what the adapter is, a table of at most ``limit`` sites (None: all), and the notes."""
    sites = summary["sites"]
    _print_head(summary, console)
    shown = sites if limit is None or len(sites) <= limit else sites[:limit]
    if shown:
        # other programs look for whole names
        prefix = _prefix([site["name"] for site in sites]) if console.is_terminal else ""
        console.print(_table(shown, prefix, values=3 if console.width >= 100 else 1))
    if len(shown) < len(sites) and limit:
        console.print(Text(f"  … and {counted(len(sites) - len(shown), 'more site')} (--sites all)", style="dim"))
    for note in summary["notes"]:
        where = f" [{safe(note['site'])}]" if note["site"] and note["site"] not in note["text"] else ""
        console.print(Padding(Text(f"! {safe(note['text'])}{where}", style="yellow"), (0, 0, 0, 1), expand=False))
    console.print()


def safe(text: str, width: int = 400) -> str:
    """The text without control, format, bidirectional and line-breaking characters, and no longer than ``width``.

    >>> safe("a\\x1b[31mb")
    'a�[31mb'
    """
    clean = "".join("\ufffd" if _is_control(character) else character for character in text)
    return clean if len(clean) <= width else clean[: width - 1] + "…"


def _is_control(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "C" or category in ("Zl", "Zp")


def _print_head(summary: dict[str, Any], console: Console) -> None:
    sites = summary["sites"]
    rows = [
        ("adapter", safe(summary["path"] or "in memory", 4096)),
        ("format", f"{summary['format']} · {_counted(site['kind'] for site in sites) or summary['kind']}"),
        ("base model", safe(summary["base_model"] or "not stated")),
        ("sites", f"{len(sites)} · {_counted(site['layer'] for site in sites)}"),
        ("rank", _span([site["dim"] for site in sites])),
        ("scale", _span([site["scale"] for site in sites])),
        ("dtype", _counted(site["dtype"] for site in sites)),
        ("‖ΔW‖", "not known" if summary["norm"] is None else f"{summary['norm']:.6g}"),
    ]
    for name, value in rows:  # a path broken over two lines could not be copied
        console.print(Text.assemble((f"{name:<12}", "dim"), value), soft_wrap=True)


def _table(sites: list[dict[str, Any]], prefix: str, values: int) -> Table:
    title = f"site ({safe(prefix, 60)}…)" if prefix else "site"
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column(Text(title), overflow="fold", ratio=1, min_width=16)
    for name in ("out × in", "rank", "scale", "‖ΔW‖", "stable rank"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("σ₁ σ₂ σ₃" if values == 3 else "σ₁", no_wrap=True)
    for site in sites:
        table.add_row(
            Text(safe(site["name"][len(prefix) :])),
            " × ".join("?" if axis is None else str(axis) for axis in site["shape"]),
            str(site["dim"])
            if site["dim"] == site["rank"] or site["rank"] is None
            else f"{site['dim']}→{site['rank']}",
            f"{site['scale']:.4g}",
            "–" if site["norm"] is None else f"{site['norm']:.4g}",
            "–" if site["stable_rank"] is None else f"{site['stable_rank']:.2f}",
            " ".join(f"{value:.3g}" for value in (site["singular_values"] or ())[:values]),
        )
    return table


def _prefix(names: list[str]) -> str:
    """The dotted beginning that all names share, so that the table has room for what differs."""
    if len(names) < 2:
        return ""
    first, last = min(names).split("."), max(names).split(".")
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
    return ".".join(first[:shared]) + "." if shared else ""


def _counted(values: Any) -> str:
    from collections import Counter

    return ", ".join(f"{value} {count}" for value, count in Counter(values).most_common(6))


def _span(values: list[float]) -> str:
    if not values:
        return "–"
    low, high = min(values), max(values)
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
