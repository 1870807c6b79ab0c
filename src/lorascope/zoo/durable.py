"""What was written is on the disk, and not only in memory, before something else says that it is there.

A rename is atomic for other processes, but after a power cut a file may be there under its new name without content,
or a record without the adapters that it names, unless each was synced before.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SYNCS_AT_ONCE = 16


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    descriptor = os.open(path, os.O_RDWR)  # Windows syncs no file that is open for reading
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk; Windows has no such call, and does it by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Wait until a file, or a folder and all in it, is on the disk."""
    if not path.is_dir():
        sync_file(path)
        return
    found = list(os.walk(path))
    # asked for at once, the disk serves many with one write of its journal
    with ThreadPoolExecutor(SYNCS_AT_ONCE) as pool:
        list(pool.map(sync_file, [Path(folder) / name for folder, _, names in found for name in names]))
        list(pool.map(sync_folder, [Path(folder) for folder, _, _ in found]))
