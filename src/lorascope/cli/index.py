"""``lorascope index``: the sketches of many adapters in one file, for ``lorascope find``."""

from __future__ import annotations

from typing import Annotated

import typer


def index(
    sources: Annotated[list[str], typer.Argument(metavar="FOLDER|ZOO…", help="Folders, zoos or files of adapters.")],
    output: Annotated[str, typer.Option("-o", "--output", help="The file of the index.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Index adapters by their weights, for `find`.

    An index that is there is brought up to date: files that have not changed are not read again, those that are gone
    are dropped. Damaged files are counted and the others go on (exit code 1). Interrupted work is saved, and goes on
    from there.

        lorascope index ~/adapters zoo/ -o adapters.index
    """
    from pathlib import Path

    from lorascope.cli.output import console, print_json, progress
    from lorascope.cli.sources import say_files_beside
    from lorascope.report.retrieved import indexed_as_dict, indexed_as_text
    from lorascope.retrieve import adapters_in, build_index, read_index, write_index

    place = Path(output)
    previous = read_index(place) if place.exists() or place.is_symlink() else None
    # the index itself may lie in a folder that is indexed
    paths = [path for path in adapters_in(sources) if path != str(place.absolute())]
    say_files_beside(paths, "indexed")
    with progress("indexing", len(paths)) as advance:
        found = build_index(paths, previous, save=lambda index: write_index(index, place), advance=advance)
    write_index(found.index, place)
    if as_json:
        print_json(indexed_as_dict(found, output))
    else:
        indexed_as_text(found, output, console())
    if found.index.failures:
        raise typer.Exit(1)
