"""``lorascope zoo repair``: forge anew what a zoo has lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def repair(
    zoo: Annotated[Path, typer.Argument(help="A zoo that `lorascope forge` made.")],
    workers: Annotated[int, typer.Option(help="Processes, one thread each.", min=1)] = 1,
    recipe: Annotated[
        Path | None, typer.Option(help="The recipe's file, for a zoo that was made with one; it is executed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Forge what is damaged or missing in a zoo anew.

    Exactly these adapters are made, bit for bit as they were. An adapter that comes out otherwise than its recorded
    hash is not put back. Exits with 1 where something is still not as recorded, such as extra files, which are left
    alone.
    """
    from lorascope.cli.output import console, print_json, progress
    from lorascope.forge.repair import repair as run
    from lorascope.report.numbers import counted
    from lorascope.zoo import verify_zoo

    with progress("repairing", len(verify_zoo(zoo).ids())) as advance:
        result = run(zoo, workers=workers, recipe=recipe, on_progress=advance)
    if as_json:
        print_json(result.as_dict())
    else:
        from lorascope.report.zoos import verification_as_text

        console().print(f"{counted(len(result.repaired), 'adapter')} made again in {result.seconds:.0f} s")
        verification_as_text(result.left, console())
    if result.left.defects:
        raise typer.Exit(1)
