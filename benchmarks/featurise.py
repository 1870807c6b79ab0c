"""Featurised adapters per second and core: the features of ``ridge`` on files of two sizes, read from disk."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
from pathlib import Path

import numpy as np

import lorascope
from lorascope.adapter import Adapter, LowRank
from lorascope.features import FEATURES, featurise
from report import median_seconds, report


def _write(folder: Path, count: int, sites: int, side: int, rank: int) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        updates = {
            f"layers.{s}.q": LowRank(
                rng.standard_normal((side, rank)).astype(np.float16),
                rng.standard_normal((rank, side)).astype(np.float16),
            )
            for s in range(sites)
        }
        paths.append(folder / f"adapter-{i}")
        lorascope.write(Adapter(updates), paths[-1])
    return paths


def figures() -> dict[str, float]:
    """Adapters per second, read and featurised, for small and for large adapters."""
    members = [FEATURES[name]() for name in FEATURES.names()]
    result: dict[str, float] = {}
    for label, count, sites, side, rank in (("18_sites_64", 128, 18, 64, 4), ("64_sites_4096", 2, 64, 4096, 16)):
        with tempfile.TemporaryDirectory() as folder:
            paths = _write(Path(folder), count, sites, side, rank)
            names = [f"layers.{s}.q" for s in range(sites)]
            read = median_seconds(lambda p=paths: [list(lorascope.read(path)) for path in p], runs=3)
            both = median_seconds(lambda p=paths, n=names: featurise(map(lorascope.read, p), members, sites=n), runs=3)
        result[f"{label}_read_headers_per_second"] = count / read
        result[f"{label}_featurised_per_second"] = count / both
    return result


if __name__ == "__main__":
    report("featurise", figures)
