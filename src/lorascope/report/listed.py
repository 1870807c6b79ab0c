"""Lists of what was left out, lost or not read: the first few, and how many more there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from lorascope.errors import LorascopeError
from lorascope.report.numbers import be, counted
from lorascope.report.tables import safe

SHOWN = 5
"""How many of a list people see; ``--json`` has all."""


def print_listed(title: str, texts: Iterable[str], console: Console, style: str = "yellow") -> None:
    """Print a line for each of the first, and how many more there are."""
    every = list(texts)
    for text in every[:SHOWN]:
        console.print(Text(f"{title}: {safe(text, 2000)}", style), soft_wrap=True)
    if len(every) > SHOWN:
        console.print(Text(f"{title}: and {len(every) - SHOWN} more (--json lists all)", style))


def print_unread(failures: Sequence[LorascopeError], console: Console) -> None:
    """Print how many adapters could not be read, and why of the first."""
    if failures:
        console.print(
            Text(f"{counted(len(failures), 'adapter')} could not be read and {be(len(failures))} not in it:", "yellow")
        )
    print_listed("  not read", map(str, failures), console)


def first_of(names: Iterable[str]) -> str:
    """The first names in a row, and a sign that there are more.

    >>> first_of("abcdefg")
    'a, b, c, d, e, …'
    """
    every = list(names)
    return ", ".join(safe(name) for name in every[:SHOWN]) + ", …" * (len(every) > SHOWN)
