"""``lorascope explain-merge``: of which adapters another was merged, with which weights."""

from __future__ import annotations

from typing import Annotated

import typer


def explain_merge(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="The adapter that may be a merge.")],
    among: Annotated[
        list[str], typer.Option("--among", metavar="FOLDER|ZOO|FILE", help="The candidates; more may follow.")
    ],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[FOLDER|ZOO|FILE…]", help="More candidates.", show_default=False)
    ] = None,
    signed: Annotated[bool, typer.Option("--signed", help="Weights may be negative.")] = False,
    smallest: Annotated[float, typer.Option(help="Leave out members that add less than this share of ‖ΔW‖.")] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Write an adapter as a weighted sum of few others.

    What remains unexplained is measured exactly. Weights are positive unless --signed is given; where weights of any
    sign would explain much more, that is said. Candidates that cannot be read, or have no ΔW without the base, are
    counted and left out (exit code 1).

        lorascope explain-merge unknown.safetensors --among zoo/

        lorascope explain-merge unknown.safetensors --among one.safetensors two/ three/
    """
    from lorascope.cli.lineage import candidates_of
    from lorascope.cli.output import console, print_json, progress
    from lorascope.formats import read
    from lorascope.report.relations import explanation_as_dict, explanation_as_text
    from lorascope.retrieve import explain_merge as explained
    from lorascope.retrieve import place_of
    from lorascope.retrieve.merge_weights import check_scipy

    check_scipy("explaining a merge")  # before many files are read
    merged = read(adapter)
    others = candidates_of([*among, *(more or [])], without=place_of(adapter))
    with progress("comparing sites", len({site for one in others.adapters for site in one})) as advance:
        found = explained(merged, others.adapters, others.names, is_signed=signed, smallest=smallest, advance=advance)
    if as_json:
        print_json(explanation_as_dict(found, adapter, others.failures))
    else:
        explanation_as_text(found, others.failures, console())
    raise typer.Exit(1 if others.failures else 0)
