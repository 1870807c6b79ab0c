"""Whether what is about to be written would fall on what it is made from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lorascope.adapter import Adapter
from lorascope.errors import OutputError
from lorascope.formats.source import config_beside, exists


def check_apart(source: str | os.PathLike[str] | Adapter, adapter: Adapter, target: Path) -> None:
    """Refuse a target that is the source, lies in the source's folder, or is a folder that holds the source.

    Links are followed: another name of the same file is the same file.

    Raises:
        OutputError: naming the part of the source that would be overwritten.
    """
    parts = [] if isinstance(source, Adapter) or not exists(source) else [Path(source)]
    weights = adapter.provenance.path
    if weights is not None:
        parts.append(weights)
        if weights.is_file() and config_beside(weights) is not None:
            parts.append(weights.parent)  # beside that configuration no file of another format could be read
    check_apart_from(parts, target)


def check_apart_from(sources: Iterable[Path], target: Path) -> None:
    """As ``check_apart``, for files and folders of any kind.

    Raises:
        OutputError: naming the source that would be overwritten.
    """
    try:
        place = target.resolve()
    except RuntimeError as error:  # pathlib's word for links in a circle
        raise OutputError("links on the way lead in a circle", file=target) from error
    for part in sources:
        real = part.resolve()
        if place == real or _is_same_file(target, part):
            raise _in_the_way("the target is the source itself", target, part)
        if part.is_dir() and place.is_relative_to(real):
            raise _in_the_way("the target lies in the folder of the source", target, part)
        if real.is_relative_to(place):
            raise _in_the_way("the target is a folder that holds the source", target, part)


def _is_same_file(one: Path, two: Path) -> bool:
    try:
        return one.samefile(two)
    except OSError:  # one of them is not there
        return False


def _in_the_way(what: str, target: Path, part: Path) -> OutputError:
    return OutputError(
        what,
        file=target,
        expected="a place apart from the source",
        found=part,
        hint="give another name; the source is never overwritten",
    )
