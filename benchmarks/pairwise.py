"""Distances of all pairs of 1,000 small adapters by large products, a loop over pairs, and dense ΔW; one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from lorascope.adapter import Adapter, LowRank
from lorascope.compare import pairwise
from lorascope.symmetry.common_sites import CommonSites
from lorascope.symmetry.cores import distance
from report import report

COUNT, RANK, PAIRS = 1000, 4, 500
CASES = ((18, 64), (4, 256))


def dense_distances(adapters: list[Adapter]) -> np.ndarray:
    """Every ΔW in full, and the expansion of the square."""
    gram = np.zeros((len(adapters), len(adapters)))
    for site in adapters[0]:
        whole = np.stack([one[site].delta_weight(np.float64).reshape(-1) for one in adapters])
        gram += whole @ whole.T
    square = np.diagonal(gram)
    return np.sqrt(np.maximum(square[:, None] + square[None, :] - 2 * gram, 0))


def planted(sites: int, side: int) -> list[Adapter]:
    """Random adapters of rank 4 in float32."""
    rng = np.random.default_rng(0)
    return [
        Adapter(
            {
                f"layers.{s}": LowRank(
                    rng.standard_normal((side, RANK)).astype(np.float32),
                    rng.standard_normal((RANK, side)).astype(np.float32),
                )
                for s in range(sites)
            }
        )
        for _ in range(COUNT)
    ]


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    """How long it took, and what it gave."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def peak_of(work: Callable[[], Any]) -> float:
    """The most memory that was held at once, in MB."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak


def loop_seconds(adapters: list[Adapter]) -> float:
    """QR pair by pair and site by site, of some pairs, for as many as there are."""
    common = CommonSites.of(adapters)
    i, j = np.random.default_rng(1).integers(0, COUNT, (2, PAIRS))

    def loop() -> None:
        for site in common.all:
            pairs = common.pairs(site, np.float64)
            for one, other in zip(i, j, strict=True):
                distance(*pairs[one], *pairs[other])

    return seconds_of(loop)[0] * COUNT * (COUNT - 1) / 2 / PAIRS


def figures() -> dict[str, float]:
    """Seconds, ratios and peaks of memory, of sites of 64 × 64 and of 256 × 256."""
    result: dict[str, float] = {}
    for sites, side in CASES:
        adapters = planted(sites, side)
        fast_seconds, fast = seconds_of(lambda adapters=adapters: pairwise(adapters))
        dense_seconds, dense = seconds_of(lambda adapters=adapters: dense_distances(adapters))
        own = {
            "fast_seconds": fast_seconds,
            "dense_over_fast": dense_seconds / fast_seconds,
            "loop_over_fast_from_500_pairs": loop_seconds(adapters) / fast_seconds,
            "recomputed_pairs": fast.recomputed,
            "fast_peak_mb": peak_of(lambda adapters=adapters: pairwise(adapters)),
            "dense_peak_mb": peak_of(lambda adapters=adapters: dense_distances(adapters)),
            "largest_difference_relative": float(np.max(np.abs(fast.distance - dense)) / fast.distance.max()),
        }
        result |= {f"{sites}_sites_of_{side}_{name}": value for name, value in own.items()}
    return result


if __name__ == "__main__":
    report("pairwise", figures)
