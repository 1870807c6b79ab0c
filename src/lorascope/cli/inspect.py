"""``lorascope inspect``: what an adapter is, without loading any base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def inspect(
    locations: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|DIR|HUB-ID...",
            help="Adapter files, folders (one adapter or a tree), or hub ids owner/name[@revision][:subfolder].",
            show_default=False,
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object for one adapter, JSON Lines for several.")
    ] = False,
    format: Annotated[
        str | None, typer.Option(help="Take the file for this format, where it leaves that open.", show_default=False)
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="The scale of sites whose scale the file does not state.", show_default="as assumed"),
    ] = None,
    mapping: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="A JSON file that says which tensors make which site, for names that no format knows: "
            '{"{site}.up": "B", "{site}.down": "A", "{site}.alpha": "alpha"}.',
            show_default=False,
        ),
    ] = None,
    headers: Annotated[
        bool,
        typer.Option(
            "--headers", help="Read headers only: sites, shapes, ranks, scales; of a hub id no weights are fetched."
        ),
    ] = False,
    sites: Annotated[str, typer.Option(help="How many sites the table lists: a number, or 'all'.")] = "24",
) -> None:
    """Show what is in adapters, and what is unusual about it.

    That is format, sites, ranks, scales, norms and spectra.
    """
    from lorascope.cli.output import console, print_error, print_json, track
    from lorascope.errors import LorascopeError
    from lorascope.formats import read
    from lorascope.formats.config_file import read_config
    from lorascope.report import summarise
    from lorascope.report.tables import as_text

    fields = None if mapping is None else read_config(Path(mapping))[0]

    def summary_of(location: str) -> dict[str, Any]:
        if headers:
            if scale is not None or mapping is not None:
                raise typer.BadParameter("headers alone take no --scale and no --mapping", param_hint="--headers")
            from lorascope.formats.headers import read_headers

            return summarise(read_headers(location, format=format), has_values=False)
        return summarise(read(location, format=format, scale=scale, mapping=fields))

    limit = None if sites == "all" else count_of(sites)
    found = expanded(locations, "shown")
    if len(found) == 1:
        summary = summary_of(found[0])
        print_json(summary) if as_json else as_text(summary, console(), limit)
        return
    has_failed = False
    for location in track(found, len(found), "inspecting"):
        try:
            summary = summary_of(location)
        except LorascopeError as error:
            error.file = error.file or location
            has_failed = True
            print_error(error, as_json=as_json)
            continue
        print_json(summary) if as_json else as_text(summary, console(), 0 if limit == 24 else limit)
    if has_failed:
        raise typer.Exit(2)


def count_of(text: str) -> int:
    """The number of sites that a table is to list."""
    if not text.isdecimal():
        raise typer.BadParameter(f"expected a number or 'all', found {text!r}", param_hint="--sites")
    return int(text)


def expanded(locations: list[str], done: str, *, is_files_said: bool = True) -> list[str]:
    """A folder that is no adapter itself becomes the adapters in it; all else is judged when it is read.

    Args:
        locations: as the command line names them.
        done: what is done with the adapters and not with what is passed by, which is said.
        is_files_said: whether weights files beside those of an adapter are said too.
    """
    from lorascope.cli.sources import inside, say_files_beside, say_passed_by

    result: list[str] = []
    for location in locations:
        found = inside(Path(location))
        if found is None:
            say_passed_by(location, done, is_files_said=is_files_said)
        elif is_files_said:
            say_files_beside(found, done)
        result += [location] if found is None else [str(path) for path in found]
    return result
