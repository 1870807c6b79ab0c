"""``lorascope formats``: which formats are read and written, and which parametrisations they carry."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def formats(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    kinds: Annotated[bool, typer.Option("--kinds", help="List the parametrisations instead.")] = False,
) -> None:
    """List the formats: what is read and written, how exactly."""
    from lorascope.cli.output import console, print_json
    from lorascope.formats import formats as all_formats
    from lorascope.formats.parametrisation import PARAMETRISATIONS
    from lorascope.report.formats import formats_as_text, kinds_as_text

    members = list(PARAMETRISATIONS)
    if as_json:
        value: dict[str, Any] = {
            "schema_version": 1,
            "formats": [
                {
                    "name": one.name,
                    "title": one.title,
                    "files": one.files,
                    "reads": bool(one.read),
                    "writes": list(one.writes),
                    "writes_unedited": bool(one.write),
                    "kinds": list(one.kinds) if one.read else [],
                    "reference": one.reference,
                }
                for one in all_formats()
            ],
            "kinds": [
                {
                    "name": one.name,
                    "title": one.title,
                    "formula": one.formula,
                    "exactness": one.exactness,
                    "defaults": one.defaults,
                    "checked_against": list(one.oracles),
                    "reference": one.reference,
                }
                for one in members
            ],
        }
        print_json(value)
    elif kinds:
        kinds_as_text(members, console())
    else:
        formats_as_text(all_formats(), console())
