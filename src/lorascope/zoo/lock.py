"""One process at a time changes a zoo; any number read it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorascope.errors import OutputError, ZooError
from lorascope.formats.source import SHARDS
from lorascope.zoo.log import LOG
from lorascope.zoo.regular import check_no_links, open_regular
from lorascope.zoo.splitting import SPLIT
from lorascope.zoo.store import ADAPTERS, COHORTS, DIVERGED, HEADER, MANIFEST

try:
    import fcntl
except ImportError:  # Windows: no lock is taken
    fcntl = None

LOCK = ".forge.lock"
OWN = (ADAPTERS, DIVERGED, COHORTS, SHARDS, "base", MANIFEST, SPLIT, LOG, HEADER)
"""What a zoo consists of."""


@contextmanager
def locked(zoo: Path) -> Iterator[None]:
    """Hold the zoo's lock. The system lets go of it when the process ends, however it ends: no lock is ever stale.

    Raises:
        ZooError: where another process holds it, or a file or folder of the zoo is a link to elsewhere.
        OutputError: where the zoo cannot be written.
    """
    path = zoo / LOCK
    try:
        stream = os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT, follow=False), "r+")
    except OSError as error:
        raise OutputError("the zoo cannot be written", file=path, found=error.strerror) from error
    with stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                raise ZooError(
                    "another run is changing this zoo",
                    file=zoo,
                    found=f"process {stream.read().strip() or 'unknown'}",
                    hint="wait for it, or work in another folder and compare",
                ) from error
        stream.seek(0)
        stream.truncate()
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        check_no_links(zoo, OWN)
        yield
