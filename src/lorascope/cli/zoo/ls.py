"""``lorascope zoo ls``: the adapters of a zoo that meet a condition."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lorascope.zoo import Zoo


def ls(
    zoo: Annotated[Path, typer.Argument(help="A zoo.")],
    where: Annotated[
        str | None,
        typer.Option(metavar="EXPR", help="Such as 'rank = 4 and test_accuracy > 0.9', or '3 in classes'."),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B", help="What to show.  [default: id, status, split and the labels]")
    ] = None,
    sort: Annotated[str | None, typer.Option(metavar="COLUMN", help="Sort by it; -COLUMN for descending.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="At most so many rows.")] = None,
    sql: Annotated[
        str | None, typer.Option(metavar="SELECT", help="Instead of all these: one select over the table `zoo`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="CSV; lists as 1;2;3, as `zoo import` reads them; control characters as �.")
    ] = False,
) -> None:
    """List the adapters of a zoo with what is known of them.

    Of every status, unless --where says otherwise.

    Example:  lorascope zoo ls zoo --where "3 in classes and rank = 4" --sort -test_accuracy --limit 10
    """
    from lorascope.cli.output import print_json
    from lorascope.errors import ZooError
    from lorascope.zoo import Zoo
    from lorascope.zoo.query import query, select

    if as_json and as_csv:
        raise ZooError("--json and --csv exclude each other")
    opened = Zoo.open(zoo)
    if sql is not None:
        if any(option is not None for option in (where, columns, sort, limit)):
            raise ZooError("--sql takes the place of --where, --columns, --sort and --limit")
        rows = query(opened, sql)
    else:
        shown = _columns(opened, columns, is_whole=as_json or as_csv)
        rows = select(opened, where=where, columns=shown, sort=sort, limit=limit)
    if as_json:
        for row in rows:
            print_json({name: _plain(value) for name, value in row.items()})
    elif as_csv:
        _print_csv(rows)
    else:
        _print_table(rows)


def _columns(zoo: Zoo, asked: str | None, *, is_whole: bool) -> list[str] | None:
    if asked is not None:
        return [name.strip() for name in asked.split(",") if name.strip()]
    return None if is_whole else ["id", "status", "split", *zoo.labels()]


def _plain(value: Any) -> Any:
    """A value of SQL as JSON has it: dates and decimals as text."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ";".join(_text(item) for item in value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _print_csv(rows: list[dict[str, Any]]) -> None:
    import csv
    import re
    import sys

    from lorascope.report.tables import safe

    def cell(text: str) -> str:  # quoted lines and tabs are what a program reads back
        return re.sub(r"(?:[^\n\r\t]|\r(?!\n))+", lambda part: safe(part[0], width=len(part[0])), text)

    writer = csv.writer(sys.stdout)
    if rows:
        writer.writerow(map(cell, rows[0]))
    writer.writerows([cell(_text(value)) for value in row.values()] for row in rows)


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from lorascope.cli.output import console
    from lorascope.report.numbers import counted
    from lorascope.report.tables import safe

    screen = console()
    table = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        table.add_column(Text(safe(name)), no_wrap=True)
    for row in rows:
        table.add_row(*(Text(f"{v:.4g}" if isinstance(v, float) else safe(_text(v))) for v in row.values()))
    screen.print(table)
    screen.print(counted(len(rows), "row"))
