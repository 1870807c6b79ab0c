"""A new zoo put together beside its place, and renamed into it when it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorascope.errors import OutputError, ZooError


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


def link_file(source: Path, place: Path, *, root: Path) -> None:
    """The file at another place: a hard link where the file system has them, else a copy; of a link what it leads to.

    Raises:
        ZooError: where it is no regular file, or a link that leads out of ``root``; a snapshot in the cache of the hub
            is made of links to the blobs beside it, which are taken.
    """
    if not source.is_file():
        raise ZooError("is not a regular file", file=source)
    if source.is_symlink():
        check_stays(source, root)
        shutil.copy2(source.resolve(), place)
        return
    try:
        os.link(source, place)
    except OSError:  # another file system
        shutil.copy2(source, place)


def check_stays(file: Path, root: Path) -> None:
    """Refuse a link that leads out of ``root`` and is none of the hub's cache.

    Raises:
        ZooError: that says where it leads.
    """
    found = file.resolve()
    if not any(found.is_relative_to(folder) for folder in (root.resolve(), *_blobs(file))):
        raise ZooError(
            "is a link that leads out of the folder: what it leads to is not taken",
            file=file,
            expected=f"a file in {root}",
            found=found,
            hint="put a copy of the file in its place, or delete it",
        )


def _blobs(file: Path) -> list[Path]:
    """The blobs of the hub's cache, for a file of ``models--owner--name/snapshots/<commit>``."""
    parents = file.parent.resolve().parents
    return [above.parent / "blobs" for above in parents if above.name == "snapshots"][:1]
