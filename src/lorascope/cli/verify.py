"""``lorascope verify``: is an adapter file what it should be, by itself and against its base?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer


def verify(
    locations: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|DIR|HUB-ID...",
            help="Adapter files, folders (one adapter or a tree), hub ids.",
            show_default=False,
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|FILE|HUB-ID",
            help="The base model's safetensors weights: sites and shapes are checked against them. Of a hub id "
            "owner/name[@revision] only headers are fetched.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Take the files for this format, where they leave that open.", show_default=False)
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="The scale of sites whose scale a file does not state.", show_default="as assumed"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object for one file, JSON Lines and a summary for several.")
    ] = False,
) -> None:
    """Check adapter files: are they sound, do they fit the base?

    Do they load, is the scale unambiguous, are all values finite, was every site trained? Of a folder also: what else
    is in it, and is any of that a pickle that can run code? With --base: do the sites exist in the base and fit its
    shapes? Exits with 1 where there are findings worse than a note, with 2 where something could not be checked.
    """
    from lorascope.cli.inspect import expanded
    from lorascope.cli.output import console, print_json, track
    from lorascope.formats.remote_checkpoint import open_headers
    from lorascope.report import findings as report
    from lorascope.scan import Examination, examine, survey, worst_first

    checkpoint = None if base is None else open_headers(base)
    found = expanded(locations, "verified", is_files_said=False)  # they are among the findings
    surveys = {root: survey(Path(root), map(Path, found)) for root in locations if Path(root).is_dir()}
    verdicts: list[report.Verdict] = []

    def tell(location: str, examination: Examination, **more: Any) -> report.Verdict:
        if as_json:
            print_json(report.as_object(location, examination) | more)
        else:
            report.findings_as_text(location, examination.findings, console())
        return report.verdict_of(examination.findings)

    for location in track(found, len(found), "verifying") if len(found) > 1 else found:
        examination = examine(location, base=checkpoint, format=format, scale=scale)
        if len(found) > 1 or not surveys:
            verdicts.append(tell(location, examination))
            continue
        (around,) = surveys.values()
        findings = worst_first([*examination.findings, *around.findings])
        more = report.not_looked_at(surveys)
        verdicts.append(tell(location, replace(examination, findings=findings), **more))
    beside: list[report.Verdict] = [
        tell(root, Examination(around.findings))
        for root, around in surveys.items()
        if around.findings and len(found) > 1
    ]
    if not as_json:
        report.survey_as_text(surveys, verdicts, console())
    elif len(found) > 1:
        print_json(report.summary_object(surveys, verdicts))
    if code := max(report.EXIT_CODES[verdict] for verdict in verdicts + beside):
        raise typer.Exit(code)
