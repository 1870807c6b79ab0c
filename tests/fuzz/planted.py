"""Readers with one bug each, which the harness must catch; each is well-behaved on all but some mutants."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import numpy as np

from fuzz.corpus import corpus
from lorascope.testing.archive_damage import MARKER
from lorascope.testing.mutations import mutant


def sound(path: Path) -> int:
    return 0


def slow(path: Path) -> int:
    end = time.process_time() + 5.5
    while time.process_time() < end:
        pass
    return 0


def hungry(path: Path) -> int:
    return int(np.ones(300 << 20, np.uint8)[-1]) - 1


def wrong(path: Path) -> int:
    raise KeyError("lora_A")


def warned(path: Path) -> int:
    warnings.warn_explicit("a division by zero", RuntimeWarning, "x.py", 1, module="lorascope.adapter.x")
    return 0


def executed(path: Path) -> int:
    Path(MARKER).touch()
    return 0


def crashed(path: Path) -> int:
    os.abort()


def waiting(path: Path) -> int:
    time.sleep(10_000)
    return 0


def crashed_at_three(path: Path) -> int:
    place = path if path.is_dir() else path.parent
    files = {name: entry for name, entry in mutant(corpus(), 20, 3).files.items() if isinstance(entry, bytes)}
    if files and all(
        (place / name).is_file() and (place / name).read_bytes() == entry for name, entry in files.items()
    ):
        os.abort()
    return 0
