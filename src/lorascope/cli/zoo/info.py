"""``lorascope zoo info``: what is in a zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def info(
    zoo: Annotated[Path, typer.Argument(help="A zoo, from `lorascope forge` or `lorascope zoo import`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Counts, columns with their roles, and splits of a zoo."""
    from lorascope.cli.output import console, print_json
    from lorascope.report.numbers import counted
    from lorascope.report.tables import safe
    from lorascope.zoo import Zoo

    summary = Zoo.open(zoo).summary()
    if as_json:
        print_json(summary)
        return
    from rich.table import Table
    from rich.text import Text

    screen = console()
    counts = ", ".join(f"{count} {safe(str(status))}" for status, count in summary["status"].items())
    splits = ", ".join(f"{count} {name}" for name, count in summary["splits"].items())
    screen.print(
        f"{safe(summary['path'], 4096)}: {counted(summary['count'], 'adapter')} ({counts})",
        markup=False,
        soft_wrap=True,
    )
    recipe = "none: imported" if summary["recipe"] is None else safe(str(summary["recipe"]))
    screen.print(f"recipe {recipe}; {counted(summary['groups'], 'group')}; {splits}", markup=False)
    has_missing = any(column["missing"] for column in summary["columns"].values())
    table = Table(box=None, pad_edge=False)
    for title in ("column", "role", "type", "mean ± sd", "range", *(["null"] if has_missing else [])):
        table.add_column(title, no_wrap=True)
    for name, column in summary["columns"].items():
        has_numbers = "mean" in column and not name.endswith("seed")  # a mean of seeds says nothing
        spread = f"{column['mean']:.3g} ± {column['sd']:.2g}" if has_numbers else ""
        range_ = f"{column['min']:.3g} … {column['max']:.3g}" if has_numbers else ""
        missing = [str(column["missing"] or "")] if has_missing else []
        table.add_row(Text(safe(name)), column["role"], column["type"], spread, range_, *missing)
    screen.print(table)
