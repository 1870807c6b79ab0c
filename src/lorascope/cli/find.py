"""``lorascope find``: the adapters nearest to one by weights, and groups of duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lorascope.retrieve import Index


def find(
    places: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER|FOLDER…", help="An adapter; with --duplicates, folders, zoos or an index."),
    ],
    where: Annotated[
        list[str] | None,
        typer.Option("--in", metavar="INDEX|FOLDER", help="Where to look; may be given again.", show_default=False),
    ] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="How many.", show_default="10")] = None,
    within: Annotated[
        float | None,
        typer.Option(
            metavar="RELATIVE", help="Those of at most this relative distance.", show_default="0.01 of duplicates"
        ),
    ] = None,
    duplicates: Annotated[bool, typer.Option("--duplicates", help="Groups of duplicates and near-duplicates.")] = False,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Read only the files whose sketches are nearest.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Find adapters by weights: the nearest, or duplicates.

    Format, gauge, rank padding, dtype and name make no difference. Distances are exact, measured on the files; the
    nearest by distance come first. Adapters that have no site in common with it are counted and not listed. Exit code 1
    where a candidate could not be read, or some of a folder could not be indexed: they may be missing in what was
    found.

        lorascope find mine.safetensors --in adapters.index -k 5

        lorascope find mine.safetensors --in ~/adapters --within 0.01

        lorascope find --duplicates ~/adapters
    """
    from lorascope.cli.output import console, print_json, progress
    from lorascope.errors import LorascopeError
    from lorascope.formats import read
    from lorascope.report.numbers import counted
    from lorascope.report.retrieved import (
        duplicates_as_dict,
        duplicates_as_text,
        search_as_dict,
        search_as_text,
    )
    from lorascope.retrieve import duplicates as duplicates_of
    from lorascope.retrieve import nearest, place_of, sketch_of
    from lorascope.retrieve.duplicates import WITHIN
    from lorascope.retrieve.finding import check_within
    from lorascope.retrieve.fingerprint import fingerprint

    check_within(within)
    if duplicates:
        if k is not None or approximate or where:
            raise LorascopeError("--duplicates takes folders or an index, and --within alone")
        index = _index_of(places)
        with progress("looking for duplicates", len(index)) as advance:
            groups = duplicates_of(index, within=WITHIN if within is None else within, advance=advance)
        if as_json:
            print_json(duplicates_as_dict(groups, index))
        else:
            duplicates_as_text(groups, index, console())
        raise typer.Exit(1 if index.failures or groups.unread else 0)
    if len(places) != 1 or not where:
        raise LorascopeError(
            "one adapter is looked for in one place or more",
            expected="ADAPTER --in INDEX or FOLDER",
            found=f"{counted(len(places), 'adapter')} and {len(where or ())} places",
        )
    adapter = read(places[0])
    index = _index_of(where)
    own = place_of(places[0])
    wanted = k if k is not None else (None if within is not None else 10)
    with progress("comparing", len(index)) as advance:
        found = nearest(
            adapter, index, k=wanted, within=within, is_approximate=approximate, without=own, advance=advance
        )
    if as_json:
        print_json(search_as_dict(found, index, places[0], fingerprint(sketch_of(adapter))))
    else:
        search_as_text(found, index, console())
    raise typer.Exit(1 if index.failures or found.unread else 0)


def _index_of(places: Sequence[str]) -> Index:
    """An index that is given, or that of folders, made for this once."""
    from pathlib import Path

    from lorascope.cli.output import progress
    from lorascope.cli.sources import say_files_beside
    from lorascope.errors import LorascopeError
    from lorascope.retrieve import adapters_in, build_index, read_index
    from lorascope.retrieve.index import is_index

    if len(places) == 1 and is_index(Path(places[0])):
        return read_index(Path(places[0]))
    if any(is_index(Path(place)) for place in places):
        raise LorascopeError("one index alone can be searched", found=", ".join(places)[:200])
    paths = adapters_in(places)
    say_files_beside(paths, "searched")
    with progress("reading", len(paths)) as advance:
        index = build_index(paths, advance=advance).index
    if not len(index):
        first = index.failures[0]
        raise LorascopeError(
            "none of the adapters here can be searched",
            expected="one or more",
            found=f"{len(paths)}: {first.error or first.path}",
        )
    return index
