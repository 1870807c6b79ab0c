"""``lorascope verify``: is an adapter file what it should be, by itself and against its base?"""

from __future__ import annotations

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
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object for one file, JSON Lines for several.")
    ] = False,
) -> None:
    """Check adapter files: do they load, is the scale unambiguous, are all values finite, was every site trained?

    With --base also: do the sites exist in the base and fit its shapes? Exits with 1 where there are findings worse
    than a note, with 2 where a path is not there.
    """
    from lorascope.cli.inspect import expanded
    from lorascope.cli.output import console, print_json, track
    from lorascope.formats.remote_checkpoint import open_headers
    from lorascope.report.findings import findings_as_text
    from lorascope.scan import verify as verify_file

    checkpoint = None if base is None else open_headers(base)
    found = expanded(locations)
    worst = 0
    for location in track(found, len(found), "verifying") if len(found) > 1 else found:
        findings = verify_file(location, base=checkpoint, format=format)
        is_bad = any(finding.severity != "note" for finding in findings)
        is_absent = any(finding.code == "not-found" for finding in findings)
        worst = max(worst, 2 if is_absent else int(is_bad))
        if as_json:
            value: dict[str, Any] = {
                "schema_version": 1,
                "path": location,
                "ok": not is_bad,
                "findings": [finding.as_dict() for finding in findings],
            }
            print_json(value)
        else:
            findings_as_text(location, findings, console())
    if worst:
        raise typer.Exit(worst)
