"""Options that verbs share: ``--overwrite``, and those given as ``name=value``, checked against a dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.errors import LorascopeError

if TYPE_CHECKING:
    from lorascope.symmetry.truncation import Cut

Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what is there: a file, or a folder with nothing else in it."),
]
"""The option of all verbs that make a file or a folder, which else refuse to write where something is."""


def cut_of(**limits: Any) -> Cut:
    """The ``Cut`` of these limits; what is out of its range is named as the option that was typed.

    Raises:
        LorascopeError: where one is out of its range.

    >>> cut_of(rank=2, error=2.0)
    Traceback (most recent call last):
    ...
    lorascope.errors.LorascopeError: --error: there is no such relative error (expected at least 0, below 1, found 2.0)
    """
    from lorascope.symmetry.truncation import Cut

    try:
        return Cut(**limits)
    except LorascopeError as problem:
        problem.key = f"--{problem.key}"
        raise


def with_options(kind: Any, settings: Sequence[str]) -> Any:
    """An instance of the dataclass ``kind`` with the fields that ``settings`` name.

    Raises:
        LorascopeError: for an unknown name, or a value of another type than the default.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Net:
    ...     hidden: int = 8
    >>> with_options(Net, ["hidden=16"])
    Net(hidden=16)
    """
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    chosen: dict[str, Any] = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator or name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise LorascopeError(
                "there is no such option",
                key=setting,
                expected="name=value with name one of " + (", ".join(fields) or "none: it has no options"),
                hint=f"did you mean {near[0]!r}?" if near else None,
            )
        chosen[name] = _parsed(name, text, fields[name])
    return kind(**chosen)


def _parsed(name: str, text: str, default: Any) -> Any:
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(default, str):
        return text
    try:
        value: Any = json.loads(text.lower())
    except json.JSONDecodeError:
        value = None
    kinds: Any = {bool: (bool,), int: (int,), float: (int, float)}[type(default)]
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
        raise LorascopeError("the value does not fit the option", key=name, expected=type(default).__name__, found=text)
    return type(default)(value)
