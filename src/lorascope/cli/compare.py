"""``lorascope compare``: how far adapters of one base are from each other."""

from __future__ import annotations

from typing import Annotated

import typer

from lorascope.cli.options import Overwrite


def compare(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER…", help="Two adapter files, folders or hub ids, or more.")
    ],
    signs: Annotated[bool, typer.Option("--signs", help="Of two alone: count entries of one sign.")] = False,
    sites: Annotated[str, typer.Option(help="How many sites the table lists: a number, or 'all'.")] = "24",
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.png", help="A heat map of relative distances; .svg and .pdf too.", show_default="no"
        ),
    ] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Compare adapters that name different base models.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compare adapters: how far apart they are, and where.

    Told are distances, cosines, angles, spectra, who dominates and how much they cancel. Formats, ranks, scales and
    dtypes may differ: compared is ΔW = scale · B · A. Figures are over the sites that all adapters have; the others are
    listed with their norms.

        lorascope compare one/ two.safetensors

        lorascope compare one/ two.safetensors --signs

        lorascope compare checkpoint-*/ --plot distances.png
    """
    from pathlib import Path

    from lorascope.cli.inspect import count_of
    from lorascope.cli.output import console, print_json, progress
    from lorascope.compare import compare as compared
    from lorascope.formats import read
    from lorascope.formats.output_name import check_file
    from lorascope.report.comparisons import comparison_as_dict, comparison_as_text
    from lorascope.report.heat_map import write_heat_map

    limit = None if sites == "all" else count_of(sites)
    if plot is not None:
        check_file(Path(plot), is_overwritten=overwrite)
    loaded = [read(adapter) for adapter in adapters]
    with progress("comparing sites", len(loaded[0]) if loaded else 0) as advance:
        found = compared(loaded, names=adapters, has_signs=signs, is_any_base=any_base, advance=advance)
    if plot is not None:
        write_heat_map(Path(plot), found.pairwise.relative_distance, found.names, "relative distance")
    if as_json:
        print_json(comparison_as_dict(found))
    else:
        comparison_as_text(found, console(), limit)
