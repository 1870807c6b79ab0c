"""2,000 small adapters read from a zoo of folders and from the same zoo packed; every value is summed."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import csv
import tempfile
from pathlib import Path

import numpy as np

import lorascope
from lorascope.adapter import Adapter, LowRank
from lorascope.zoo import Zoo, import_zoo, pack
from report import median_seconds, report

COUNT, SITES, SIDE, RANK = 2000, 18, 64, 4


def _zoo(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        updates = {
            f"layers.{site}.q": LowRank(
                rng.standard_normal((SIDE, RANK)).astype(np.float32),
                rng.standard_normal((RANK, SIDE)).astype(np.float32),
            )
            for site in range(SITES)
        }
        lorascope.write(Adapter(updates), folder / "source" / f"a{number}")
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "n"), *((f"a{number}", number) for number in range(COUNT))])
    import_zoo(folder / "source", folder / "labels.csv", out=folder / "zoo")
    return folder / "zoo"


def _read(zoo: Path) -> float:
    opened = Zoo.open(zoo)
    total = 0.0
    for row in opened.rows():
        for update in opened.read(row).values():
            B, A, _ = update.factors()
            total += float(B.sum()) + float(A.sum())
    return total


def _disk(zoo: Path) -> float:
    return sum(path.stat().st_blocks * 512 for path in zoo.rglob("*")) / 1e6


def figures() -> dict[str, float]:
    """Seconds, adapters a second, megabytes on the disk, and the seconds that packing takes."""
    import time

    with tempfile.TemporaryDirectory() as folder:
        zoo = _zoo(Path(folder))
        plain, plain_disk, expected = median_seconds(lambda: _read(zoo), runs=3), _disk(zoo), _read(zoo)
        began = time.perf_counter()
        pack(Zoo.open(zoo))
        packing = time.perf_counter() - began
        packed = median_seconds(lambda: _read(zoo), runs=3)
        if _read(zoo) != expected:
            raise AssertionError("the packed zoo holds other values")
        return {
            "folders_adapters_per_second": COUNT / plain,
            "packed_adapters_per_second": COUNT / packed,
            "packed_speedup": plain / packed,
            "folders_megabytes_on_disk": plain_disk,
            "packed_megabytes_on_disk": _disk(zoo),
            "packing_seconds": packing,
        }


if __name__ == "__main__":
    report("reading 2,000 small adapters of a zoo", figures)
