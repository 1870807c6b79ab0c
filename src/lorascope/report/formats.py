"""The tables of formats and parametrisations, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from lorascope.formats import Format
from lorascope.formats.parametrisation import Parametrisation


def formats_as_text(formats: Sequence[Format], console: Console) -> None:
    """Print which formats are read and written."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for name in ("format", "read", "written", "kinds", "files"):
        table.add_column(name, overflow="fold")
    for one in formats:
        if one.read is None:
            table.add_row(one.name, "named only", "no", "–", one.files or one.title)
            continue
        written = ", ".join(one.writes) if one.writes else "unedited" if one.write else "no"
        table.add_row(one.name, "yes", written, ", ".join(one.kinds), one.files or one.title)
    console.print(table)
    console.print("\nwritten: kinds that are written from any format; unedited files go back to their own bit for bit.")
    console.print("`lorascope formats --kinds` says what the kinds mean.")


def kinds_as_text(kinds: Iterable[Parametrisation], console: Console) -> None:
    """Print what each parametrisation means and how exactly its ΔW is known."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for name in ("kind", "formula", "ΔW is", "checked against", "reference"):
        table.add_column(name, overflow="fold")
    for one in kinds:
        table.add_row(one.name, one.formula, one.exactness, ", ".join(one.oracles) or "–", one.reference)
    console.print(table)
