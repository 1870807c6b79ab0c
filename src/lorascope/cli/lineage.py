"""``lorascope lineage``: which adapters were made of which others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from lorascope.adapter import Adapter


def lineage(
    sources: Annotated[list[str], typer.Argument(metavar="FOLDER|ZOO|FILE…", help="Adapters, or folders of them.")],
    tolerance: Annotated[float, typer.Option(help="Relative error up to which a relation is taken for true.")] = 1e-3,
    cosine: Annotated[float, typer.Option(help="From which on one is guessed to be the other trained further.")] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Tell which adapters were made of which others.

    Told, with the evidence, are copies, requantised, scaled, resized and merged adapters, which are measured: all that
    X is said to be is within the tolerance. `continued` is a guess, from a cosine alone, where nothing else relates
    two. "X ← Y": X was made of Y; "X ↔ Y": which of them came first is not known.

    Adapters that cannot be read, or have no ΔW without the base, are counted and left out (exit code 1).

        lorascope lineage ~/adapters
    """
    from lorascope.cli.output import console, print_json, progress
    from lorascope.report.relations import lineage_as_dict, lineage_as_text
    from lorascope.retrieve import lineage as lineage_of
    from lorascope.retrieve.merge_weights import check_scipy

    check_scipy("telling merges")  # before many files are read
    found = candidates_of(sources)
    with progress("comparing sites", len({site for one in found.adapters for site in one})) as advance:
        edges = lineage_of(found.adapters, found.names, tolerance=tolerance, cosine=cosine, advance=advance)
    if as_json:
        print_json(lineage_as_dict(edges, len(found.adapters), found.failures))
    else:
        lineage_as_text(edges, len(found.adapters), found.failures, console())
    raise typer.Exit(1 if found.failures else 0)


class Candidates(NamedTuple):
    """Adapters that have a ΔW of their own, their paths, and path → why others have none."""

    adapters: list[Adapter]
    names: list[str]
    failures: dict[str, str]


def candidates_of(sources: Sequence[str], *, without: str | None = None) -> Candidates:
    """Every adapter at or below the sources; each is read once for its norm, which finds what is not finite.

    Raises:
        LorascopeError: where there are some, and none of them can be used.
    """
    from lorascope.cli.output import track
    from lorascope.cli.sources import say_files_beside
    from lorascope.errors import LorascopeError
    from lorascope.formats import read
    from lorascope.retrieve import adapters_in, place_of, sketch_of

    adapters: list[Adapter] = []
    names: list[str] = []
    failures: dict[str, str] = {}
    paths = [path for path in adapters_in(sources) if without is None or without not in (path, place_of(path))]
    say_files_beside(paths, "compared")
    for path in track(paths, len(paths), "reading"):
        try:
            adapter = read(path)
            sketch_of(adapter)
        except LorascopeError as error:
            failures[path] = str(error).partition("\n")[0]
            continue
        adapters.append(adapter)
        names.append(path)
    if failures and not adapters:
        raise LorascopeError(
            "none of the adapters can be used",
            expected="one or more",
            found=f"{len(failures)}: {next(iter(failures.values()))}",
        )
    return Candidates(adapters, names, failures)
