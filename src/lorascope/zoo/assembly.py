"""A new zoo put together beside its place, and renamed into it when it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorascope.errors import OutputError


def check_new(target: Path) -> None:
    """Refuse a place where something is: never replaced, as a zoo may hold the only copy of its adapters.

    Raises:
        OutputError: where it is no new or empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(
            "there is something else at the place of the zoo", file=target, expected="a new or empty folder"
        )


@contextmanager
def assembled(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that becomes it when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: where it cannot be written.
    """
    check_new(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise OutputError("the zoo cannot be written", file=target, found=error.strerror) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except OSError as error:
        raise OutputError("the zoo cannot be written", file=target, found=error.strerror) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def link_file(source: Path, place: Path) -> None:
    """The file at another place: a hard link where the file system has them, else a copy."""
    try:
        os.link(source.resolve(), place)
    except OSError:  # another file system
        shutil.copy2(source, place)
