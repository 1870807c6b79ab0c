"""⟨ΔW₁, ΔW₂⟩ in rank × rank cores against dense products: 64 sites of 4096 × 4096, rank 16, one thread, float32."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lorascope.symmetry import inner
from report import median_seconds, report

SITES, SIDE, RANK = 64, 4096, 16


def figures() -> dict[str, float]:
    """Seconds for all sites both ways, their ratio, and how far the values differ."""
    rng = np.random.default_rng(0)
    B1, B2 = (rng.standard_normal((SITES, SIDE, RANK), dtype=np.float32) for _ in range(2))
    A1, A2 = (rng.standard_normal((SITES, RANK, SIDE), dtype=np.float32) for _ in range(2))

    def dense(sites: int) -> list[float]:
        # one site at a time: two dense matrices of 64 MiB, the best that a dense method can do for memory
        return [float(np.vdot(B1[s] @ A1[s], B2[s] @ A2[s])) for s in range(sites)]

    few = 8
    core_seconds = median_seconds(lambda: inner(B1, A1, B2, A2))
    dense_seconds = median_seconds(lambda: dense(few), runs=3) * SITES / few
    cores, slow = inner(B1[:few], A1[:few], B2[:few], A2[:few]), np.asarray(dense(few))
    # relative to ‖ΔW₁‖‖ΔW₂‖, the scale on which an inner product is known
    scale = np.sqrt(inner(B1[:few], A1[:few], B1[:few], A1[:few]) * inner(B2[:few], A2[:few], B2[:few], A2[:few]))
    return {
        "core_seconds": core_seconds,
        "dense_seconds_extrapolated_from_8_sites": dense_seconds,
        "dense_over_core": dense_seconds / core_seconds,
        "largest_difference_relative_to_norms": float(np.max(np.abs(cores - slow) / scale)),
    }


if __name__ == "__main__":
    report("inner_products", figures)
