"""Makes docs/kinds.md from the registries of formats and parametrisations: `python docs/make_kinds.py [--check]`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from lorascope.formats import formats
from lorascope.formats.parametrisation import PARAMETRISATIONS

TARGET = Path(__file__).with_name("kinds.md")

HEAD = """# Kinds of updates, and the formats that hold them

Made by `python docs/make_kinds.py` from the registries; a test checks that it is current. *ΔW is* says what is known
without the base model: "low rank" is scale · B · A as stored; "expanded" the same, worked out exactly from what is
stored; "dense" is additive and of full rank; "relative" needs the base weight. *Checked against* names the library that
made the files of the tests and whose own weight change (or forward pass) ours equals to rounding; where there is none,
the formula was checked against a transcription of the source that the kind's file names, or real files.
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def text() -> str:
    members = formats()
    kinds = [
        (
            f"`{kind.name}`",
            kind.formula,
            kind.exactness,
            ", ".join(one.name for one in members if one.read and kind.name in one.kinds) or "–",
            ", ".join(one.name for one in members if kind.name in one.writes) or "–",
            "yes" if kind.exactness.startswith("low rank") else "no",
            ", ".join(kind.oracles) or "–",
            f"[source]({kind.reference})",
        )
        for kind in PARAMETRISATIONS
    ]
    rows = [
        (
            f"`{one.name}`",
            one.files or one.title,
            "yes" if one.read else "named only",
            ", ".join(one.writes) or ("unedited" if one.write else "no"),
            f"[source]({one.reference})",
        )
        for one in members
    ]
    head = ("kind", "formula", "ΔW is", "read from", "written to", "exact low rank", "checked against", "")
    return "\n".join(
        (
            HEAD,
            table(head, kinds),
            "## Formats\n",
            table(("format", "files", "read", "kinds written from any format", ""), rows),
        )
    )


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(TARGET.read_text(encoding="utf-8") != text())
    TARGET.write_text(text(), encoding="utf-8")
