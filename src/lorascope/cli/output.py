"""The one place that prints: results as text or JSON, errors, and progress."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeVar, cast

if TYPE_CHECKING:
    from rich.console import Console

    from lorascope.errors import LorascopeError

T = TypeVar("T")


UNBROKEN = 1 << 16
"""Columns of output that no terminal shows: lines for other programs are never broken."""


def console() -> Console:
    """The console on standard output, for tables and text; into a pipe or a file every row is one whole line."""
    from rich.console import Console

    terminal = Console(soft_wrap=False, highlight=False, markup=False)
    if terminal.is_terminal:
        return terminal
    out = cast("IO[str]", _Trimmed(sys.stdout))
    return Console(soft_wrap=False, highlight=False, markup=False, width=UNBROKEN, file=out)


class _Trimmed:
    """A stream without the spaces at the ends of lines that tables are filled up with."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(re.sub(r" +(?=\n)", "", text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def print_json(value: Any) -> None:
    """One JSON object on one line of standard output; undefined numbers are null, never NaN."""
    sys.stdout.write(json.dumps(finite(value), allow_nan=False) + "\n")
    sys.stdout.flush()


def finite(value: Any) -> Any:
    """``value`` with every NaN and infinity replaced by None, at any depth.

    >>> finite({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def print_error(error: LorascopeError, *, as_json: bool = False) -> None:
    """An error: one JSON object on standard output where the result would be, else text on standard error."""
    if as_json:
        print_json(error.as_dict())
    else:
        from lorascope.report.tables import safe

        # names come from untrusted files: what a terminal would take for a command never reaches it
        text = "\n".join(safe(line, width=2000) for line in str(error).split("\n"))
        sys.stderr.write(f"error: {text}\n")


def track(items: Iterable[T], total: int | None, description: str) -> Iterator[T]:
    """The items, with a progress bar on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import track as rich_track

    terminal = Console(stderr=True)
    yield from rich_track(
        items, description, total=total, console=terminal, transient=True, disable=not terminal.is_terminal
    )


@contextmanager
def progress(description: str, total: int) -> Iterator[Any]:
    """A function ``advance(n)`` that moves a progress bar with the time left, on standard error.

    Where standard error is no terminal, a line is written at each tenth of the way, of work over two seconds.
    """
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    terminal = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        done, start = 0, time.monotonic()

        def advance(count: int = 1) -> None:
            nonlocal done
            tenth = 10 * done // max(total, 1)
            done += count
            bar.advance(task, count)
            is_long = time.monotonic() - start > 2
            if is_long and not terminal.is_terminal and 10 * done // max(total, 1) > tenth:
                sys.stderr.write(f"{description}: {done}/{total}\n")

        yield advance
