"""``lorascope zoo verify``: is a zoo what its records say?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    zoo: Annotated[Path, typer.Argument(help="A zoo, from `lorascope forge` or `lorascope zoo import`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare every adapter with its recorded hashes.

    What is damaged, missing, or in no record? Exits with 1 if any is. Nothing is changed; `lorascope zoo repair` makes
    lost adapters of a forged zoo again.
    """
    from lorascope.cli.output import console, print_json, track
    from lorascope.zoo import verify_zoo

    found = verify_zoo(zoo, track=lambda rows: track(rows, len(rows), "hashing adapters"))
    if as_json:
        print_json(found.as_dict())
    else:
        from lorascope.report.zoos import verification_as_text

        verification_as_text(found, console())
    if found.defects:
        raise typer.Exit(1)
