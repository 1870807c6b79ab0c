"""Paths that a manifest states, which anyone may have written: they stay inside the zoo."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lorascope.errors import ZooError


def inside(folder: Path, stated: Any) -> Path:
    """``folder / stated`` for a relative path with ``/`` that stays inside the folder, links followed.

    >>> inside(Path("zoo"), "../../etc/passwd")
    Traceback (most recent call last):
    lorascope.errors.ZooError: zoo: path: points outside of the zoo (expected a relative path inside it, found
    '../../etc/passwd')
    """
    is_plain = (
        isinstance(stated, str)
        and stated not in ("", ".")
        and not PurePosixPath(stated).is_absolute()
        and not PureWindowsPath(stated).drive
        and "\\" not in stated
        and "\0" not in stated
        and ".." not in PurePosixPath(stated).parts
    )
    try:
        stays = is_plain and (folder / stated).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a name too long, a loop of links
        stays = False
    if not stays:
        raise ZooError(
            "points outside of the zoo",
            file=folder,
            key="path",
            expected="a relative path inside it",
            found=repr(stated),
        )
    return folder / stated
