"""One run at a time on one zoo."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorascope.errors import ForgeError

try:
    import fcntl
except ImportError:  # Windows: no lock is taken
    fcntl = None

LOCK = ".forge.lock"


@contextmanager
def locked(zoo: Path) -> Iterator[None]:
    """Hold the zoo's lock. The system lets go of it when the process ends, however it ends: no lock is ever stale.

    Raises:
        ForgeError: where another process holds it.
    """
    path = zoo / LOCK
    with path.open("a+") as stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                raise ForgeError(
                    "another run is forging into this zoo",
                    file=zoo,
                    found=f"process {stream.read().strip() or 'unknown'}",
                    hint="wait for it, or forge into another folder and compare",
                ) from error
        stream.seek(0)
        stream.truncate()
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield
