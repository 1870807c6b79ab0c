"""``lorascope decompress``: the adapters of a pack as files."""

from __future__ import annotations

from typing import Annotated

import typer

from lorascope.cli.options import Overwrite


def decompress(
    pack: Annotated[str, typer.Argument(metavar="PACK", help="What `lorascope compress` wrote.", show_default=False)],
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="A new folder.", show_default=False)],
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only the adapter of this name; can be repeated.", show_default="all"),
    ] = None,
    to: Annotated[str, typer.Option(help="The format to write; `lorascope formats` lists them.")] = "peft",
    dtype: Annotated[str, typer.Option(help="dtype of the factors.")] = "float32",
    allow_growth: Annotated[
        bool, typer.Option("--allow-growth", help="Write adapters however much larger than the pack they are.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Write the adapters of a pack into a folder.

    Each gets its own name.
    """
    from pathlib import Path

    from lorascope.cli.output import console, print_json, progress
    from lorascope.compress import decompress as unpack
    from lorascope.compress import read_pack
    from lorascope.conversion.apart import check_apart_from
    from lorascope.report.numbers import counted
    from lorascope.report.tables import safe

    if overwrite:
        check_apart_from([Path(pack)], Path(output))
    opened = read_pack(Path(pack))
    with progress("unpacking", len(only or opened.members)) as advance:
        written = unpack(
            opened,
            Path(output),
            only=only or (),
            to=to,
            dtype=dtype,
            is_growth_allowed=allow_growth,
            is_overwritten=overwrite,
            advance=advance,
        )
    if as_json:
        print_json({"schema_version": 1, "output": output, "adapters": [str(path) for path in written]})
    else:
        console().print(f"{counted(len(written), 'adapter')}: {safe(output, 4096)}", soft_wrap=True)
