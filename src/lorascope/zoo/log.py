"""``log.jsonl``: what was done to a zoo, one JSON object a line, added to and never rewritten.

A run has a line when it begins and one when it ends; a run that was killed has no second. Nothing is decided by the
log. No names of machines are in it, and no paths but those that are settings.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorascope.errors import OutputError, ZooError
from lorascope.version import __version__
from lorascope.zoo.regular import open_regular, read_regular
from lorascope.zoo.schema import SCHEMA_VERSION

LOG = "log.jsonl"


@contextmanager
def logged(zoo: Path, command: str, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Log a run: at its beginning, and at its end with the seconds and the counts put into the given dictionary.

    Only the holder of the zoo's lock may log.

    Raises:
        OutputError: where the zoo cannot be written.
    """
    began = time.monotonic()
    facts = {"command": command, "version": __version__, "settings": dict(settings), "machine": machine()}
    _add(zoo, {"event": "began", **facts})
    counts: dict[str, Any] = {}
    try:
        yield counts
    except BaseException as error:
        with contextlib.suppress(OutputError):  # a disk that is full must not hide what went wrong
            _add(zoo, _ended(command, type(error).__name__, counts, began))
        raise
    _add(zoo, _ended(command, None, counts, began))


def read_log(zoo: Path) -> list[dict[str, Any]]:
    """The lines of the log, the oldest first; a line that a power cut tore is left out."""
    lines: list[dict[str, Any]] = []
    try:
        text = read_regular(zoo / LOG).decode("utf-8", errors="replace")
    except ZooError:
        return []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def machine() -> dict[str, Any]:
    """What of a machine may change bits or speed: its kind, usable cores, and versions."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: str(sys.modules[name].__version__) for name in ("numpy", "torch") if name in sys.modules}
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": usable,
        "python": platform.python_version(),
        **versions,
    }


def _ended(command: str, error: str | None, counts: Mapping[str, Any], began: float) -> dict[str, Any]:
    seconds = round(time.monotonic() - began, 3)
    return {"event": "ended", "command": command, "error": error, "seconds": seconds, "counts": dict(counts)}


def _add(zoo: Path, entry: Mapping[str, Any]) -> None:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({"schema_version": SCHEMA_VERSION, "when": when, **entry}) + "\n"
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        with os.fdopen(open_regular(zoo / LOG, flags, follow=False), "ab+") as stream:
            end = stream.seek(0, os.SEEK_END)
            if end:
                stream.seek(end - 1)
                line = line if stream.read(1) == b"\n" else f"\n{line}"  # after a torn line
            stream.write(line.encode())
    except OSError as error:
        raise OutputError("the log of the zoo cannot be written", file=zoo / LOG, found=error.strerror) from error
