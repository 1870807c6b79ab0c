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
    from lorascope.zoo import Zoo

    summary = Zoo.open(zoo).summary()
    if as_json:
        print_json(summary)
        return
    from rich.table import Table

    screen = console()
    counts = ", ".join(f"{count} {status}" for status, count in summary["status"].items())
    splits = ", ".join(f"{count} {name}" for name, count in summary["splits"].items())
    screen.print(f"{summary['path']}: {summary['count']} adapters ({counts})", markup=False, soft_wrap=True)
    screen.print(f"recipe {summary['recipe'] or 'none: imported'}; {summary['groups']} groups; {splits}")
    has_missing = any(column["missing"] for column in summary["columns"].values())
    table = Table(box=None, pad_edge=False)
    for title in ("column", "role", "type", "mean ± sd", "range", *(["null"] if has_missing else [])):
        table.add_column(title, no_wrap=True)
    for name, column in summary["columns"].items():
        has_numbers = "mean" in column and not name.endswith("seed")  # a mean of seeds says nothing
        spread = f"{column['mean']:.3g} ± {column['sd']:.2g}" if has_numbers else ""
        range_ = f"{column['min']:.3g} … {column['max']:.3g}" if has_numbers else ""
        missing = [str(column["missing"] or "")] if has_missing else []
        table.add_row(name, column["role"], column["type"], spread, range_, *missing)
    screen.print(table)
