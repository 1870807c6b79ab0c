"""``lorascope zoo merge``: several zoos as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def merge(
    zoos: Annotated[list[Path], typer.Argument(metavar="ZOO ZOO...", help="Two zoos or more.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    union: Annotated[
        bool, typer.Option("--union", help="Take the columns of all zoos, null where a zoo has them not.")
    ] = False,
    groups: Annotated[
        Literal["joined", "apart"],
        typer.Option(help="joined: groups of one name are one; apart: names of different zoos are not related."),
    ] = "joined",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make one zoo of several.

    Every adapter's recipe, settings and base hash are kept. Files are hard-linked where that can be. An id that two
    zoos have gets the number of its zoo before it.
    """
    from lorascope.cli.output import console, print_json
    from lorascope.report.numbers import counted
    from lorascope.zoo import merge_zoos

    result = merge_zoos(zoos, out, union=union, groups=groups)
    if as_json:
        print_json(result.as_dict())
        return
    renamed = f", {counted(result.renamed, 'id')} renamed" if result.renamed else ""
    console().print(
        f"{out}: {counted(result.count, 'adapter')} of {result.zoos} zoos{renamed}", markup=False, soft_wrap=True
    )
