"""``lorascope zoo import``: a zoo of one's own adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Your adapters, in any tree.")],
    labels: Annotated[
        Path,
        typer.Option(help="A CSV file: a column `path` relative to DIR, and a column per label. Lists as 1;2;3."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="A new folder, with the adapters linked into it. [default: DIR itself]")
    ] = None,
    hyperparameter: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="A column known before training; may be repeated.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Equal values stay on one side of the split.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a zoo of your own adapters and a table of labels, so that `lorascope fit` can learn from it."""
    from lorascope.cli.output import console, print_json
    from lorascope.cli.output import track as bar
    from lorascope.zoo import import_zoo

    report = import_zoo(
        folder,
        labels,
        out=out,
        hyperparameters=hyperparameter or [],
        group=group,
        track=lambda paths: bar(paths, len(paths), "checking adapters"),
    )
    if as_json:
        print_json(report.as_dict())
        return
    screen = console()
    screen.print(f"{report.zoo}: {report.count} adapters", markup=False, soft_wrap=True)
    for path, error in list(report.unreadable.items())[:10]:
        screen.print(f"  unreadable: {path}: {error}", markup=False, soft_wrap=True)
    if len(report.unreadable) > 10:
        screen.print(f"  … {len(report.unreadable)} unreadable in all; --json lists them")
    if report.unlabelled:
        shown = ", ".join(report.unlabelled[:3]) + (", …" if len(report.unlabelled) > 3 else "")
        screen.print(f"  {len(report.unlabelled)} adapters without labels: {shown}", markup=False, soft_wrap=True)
    screen.print(f"next: lorascope zoo info {report.zoo}", markup=False, soft_wrap=True)
