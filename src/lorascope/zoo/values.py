"""The cells of a table of labels as values: what kind of column it is, found from all of its cells.

int, float, bool     plain numbers, true/false; an empty cell is null
string               anything else
list of these        ``1;2;3`` or JSON ``[1, 2, 3]``, where any cell of the column is such a list
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorascope.errors import ZooError
from lorascope.zoo.schema import Type


def parse_column(name: str, cells: Sequence[str], file: Path) -> tuple[Type, list[Any]]:
    """The type of a column and its values.

    Raises:
        ZooError: where a cell starts as a JSON list and is none, or a number is not finite.

    >>> parse_column("n", ["1", "", "3"], Path("labels.csv"))
    ('int', [1, None, 3])
    >>> parse_column("classes", ["1;2", "7"], Path("labels.csv"))
    ('list<int>', [[1, 2], [7]])
    """
    if any(_is_list(cell) for cell in cells):
        split = [None if not cell else _items(name, cell, file) for cell in cells]
        kind, convert = _kind(name, [item for items in split if items is not None for item in items], file)
        if kind == "bool":
            kind, convert = "string", str
        types: dict[str, Type] = {"int": "list<int>", "float": "list<float>", "string": "list<string>"}
        return types[kind], [None if items is None else [convert(item) for item in items] for items in split]
    kind, convert = _kind(name, [cell for cell in cells if cell], file)
    return kind, [convert(cell) if cell else None for cell in cells]


def _is_list(cell: str) -> bool:
    return ";" in cell or (cell.startswith("[") and cell.endswith("]"))


def _items(name: str, cell: str, file: Path) -> list[str]:
    if not cell.startswith("["):
        return [item.strip() for item in cell.split(";") if item.strip()]
    try:
        items = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise ZooError("a cell is not a JSON list", file=file, key=name, found=cell[:60]) from error
    return [item if isinstance(item, str) else json.dumps(item) for item in items]


def _kind(name: str, cells: Sequence[str], file: Path) -> tuple[Type, Any]:
    if any("_" in cell for cell in cells):  # Python would read 1_0 as ten
        return "string", str
    words = {cell.lower() for cell in cells}
    if cells and words <= {"true", "false"}:
        return "bool", lambda cell: cell.lower() == "true"
    for kind, convert in (("int", int), ("float", float)):
        try:
            numbers = [convert(cell) for cell in cells]
        except ValueError:
            continue
        if not all(abs(number) < 2**63 and math.isfinite(number) for number in numbers):
            raise ZooError("a number is not finite or too large", file=file, key=name, hint="leave the cell empty")
        return kind, convert  # type: ignore[return-value]  # the two names are members of Type
    return "string", str
