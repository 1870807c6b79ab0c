"""``lorascope zoo split``: a split of one's own, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorascope.cli.options import Overwrite


def split(
    zoo: Annotated[Path, typer.Argument(help="A zoo.")],
    by: Annotated[str, typer.Option(metavar="COLUMN", help="Equal values stay on one side.")] = "group",
    salt: Annotated[str, typer.Option(help="Another salt splits afresh.")] = "",
    fractions: Annotated[
        str, typer.Option(metavar="A,B,C", help="Shares of the groups for train, validation and test.")
    ] = ".7,.15,.15",
    out: Annotated[
        Path | None, typer.Option(help="A file for it.  [default: split.json in the zoo, which makes it the zoo's own]")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Split the groups of a zoo anew, by a hash.

    No group straddles, and adapters that come later follow the rule. `fit` and `evaluate` read the split in the zoo, or
    the file that --splits names.
    """
    from lorascope.cli.output import console, print_json
    from lorascope.conversion.apart import check_apart_from
    from lorascope.errors import ZooError
    from lorascope.formats.output_name import check_file
    from lorascope.zoo import Splitting, Zoo
    from lorascope.zoo.splitting import SPLIT

    path = zoo / SPLIT if out is None else out
    check_file(path, is_overwritten=overwrite)
    if out is not None and out.exists():
        check_apart_from([zoo], out)
    try:
        shares = [float(part) for part in fractions.split(",")]
    except ValueError:
        raise ZooError("are not numbers", key="--fractions", expected=".7,.15,.15", found=fractions) from None
    splitting = Splitting.of(Zoo.open(zoo), by=by, salt=salt, fractions=shares)
    splitting.save(path)
    if as_json:
        print_json(
            {"schema_version": 1, "path": str(path), "by": by, "digest": splitting.digest, "splits": splitting.counts()}
        )
        return
    counts = ", ".join(f"{count} {name}" for name, count in splitting.counts().items())
    console().print(f"{path}: {counts}, by {by}, digest {splitting.digest[:12]}", markup=False, soft_wrap=True)
