"""Makes docs/forge-kinds.md from the kinds that the forge trains: `python docs/make_forge_kinds.py [--check]`."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

from lorascope.forge.kind import Kind
from lorascope.forge.kinds import KINDS

TARGET = Path(__file__).with_name("forge-kinds.md")

HEAD = """# Kinds of adapters that the forge trains

Made by `python docs/make_forge_kinds.py` from the kinds; a test checks that it is current. Choose one with
`lorascope forge RECIPE --set kind=NAME`, and its options in the same way. Each trains in a batch of adapters as it
would alone; what PEFT has is tested to train as PEFT trains it, and every file to load in PEFT with equal outputs.
"""


def row(kind: Kind) -> str:
    cells = (
        f"[`{kind.name}`](#{kind.name})",
        kind.formula,
        ", ".join(sorted(kind.layers)),
        ", ".join(f"`{name}`" for name in kind.options) or "–",
        kind.files,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def section(kind: Kind) -> str:
    text = inspect.getdoc(importlib.import_module(type(kind).__module__)) or ""
    lines = [f"## {kind.name}\n", text, ""]
    for name, drawn in kind.options.items():
        lines.append(f"- `{name}`: {drawn.about}; {drawn} unless set")
    if kind.needs != "nothing":
        lines.append(f"- looks at the {kind.needs} of the adapter's own first batches before it starts")
    if kind.common:
        lines.append(f"- the same for all adapters of a stack: {', '.join(sorted(kind.common))}")
    return "\n".join(lines).rstrip() + "\n"


def text() -> str:
    members = list(KINDS)
    head = "| kind | formula | layers | options | files |\n| --- | --- | --- | --- | --- |"
    table = "\n".join([head, *map(row, members)]) + "\n"
    return "\n".join([HEAD, table, *map(section, members)])


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(TARGET.read_text(encoding="utf-8") != text())
    TARGET.write_text(text(), encoding="utf-8")
