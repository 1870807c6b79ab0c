"""``lorascope zoo layouts``: which published zoos are imported as they lie."""

from __future__ import annotations

from typing import Annotated

import typer

FIELDS = ("name", "title", "reference", "files", "documented", "unknown", "is_experimental")


def layouts(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List the layouts that `zoo import --layout` knows.

    Told are their files, where they are documented, and what they leave open. A layout that was never run on the
    published files themselves is experimental.
    """
    from lorascope.cli.output import console, print_json
    from lorascope.zoo import LAYOUTS

    members = list(LAYOUTS)
    if as_json:
        described = [{field: getattr(member, field) for field in FIELDS} for member in members]
        print_json({"schema_version": 1, "layouts": described})
        return
    screen = console()
    for member in members:
        experimental = " [experimental]" if member.is_experimental else ""
        screen.print(f"{member.name}: {member.title}{experimental}", markup=False, soft_wrap=True)
        for field in FIELDS[2:6]:
            screen.print(f"  {field}: {getattr(member, field)}", markup=False, soft_wrap=True)
