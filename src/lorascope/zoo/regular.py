"""Regular files alone: a zoo may come from anyone, with links to other files and pipes that would be waited for."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from lorascope.errors import ZooError

# Windows has the last alone
_NOFOLLOW, _NONBLOCK, _BINARY = (getattr(os, f"O_{name}", 0) for name in ("NOFOLLOW", "NONBLOCK", "BINARY"))


def open_regular(path: Path, flags: int, *, follow: bool) -> int:
    """A descriptor of a regular file, nothing of which has been changed yet.

    Args:
        path: the file.
        flags: as ``os.open`` takes them; none that truncate.
        follow: whether it may be a link to one, as files in the cache of the hub are.

    Raises:
        OSError: where it is no regular file, or cannot be opened.
    """
    if not follow and path.is_symlink():  # Windows has no flag for it
        raise OSError(errno.ELOOP, "is a link")
    descriptor = os.open(path, flags | _NONBLOCK | _BINARY | (0 if follow else _NOFOLLOW), 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file")
    return descriptor


def read_regular(path: Path) -> bytes:
    """The content of a regular file, or of the one that a link leads to.

    Raises:
        ZooError: where it is none, or cannot be read.
    """
    if not path.is_file():
        raise ZooError("is not a regular file", file=path)
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY, follow=True), "rb") as stream:
            return stream.read()
    except OSError as error:
        raise ZooError("cannot be read", file=path, found=error.strerror) from error


def check_no_links(zoo: Path, names: Iterable[str]) -> None:
    """Refuse a zoo of whose own files and folders one is a link: what it leads to would be changed, or sent away.

    The folder of the zoo itself may be one.

    Raises:
        ZooError: that names it.
    """
    for name in names:
        if (zoo / name).is_symlink():
            raise ZooError(
                "is a link: what it leads to is not part of the zoo",
                file=zoo / name,
                expected="a file or folder of its own",
                hint="put what it leads to in its place, or delete it",
            )
