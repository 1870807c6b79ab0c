"""The Fréchet mean of updates of one rank on a quotient of factors: no method but a definition of nearness.

    X_i = [B_i; A_iᵀ] balanced, B_iᵀ B_i = A_i A_iᵀ, [out + in, k], up to X Q with Q in O(k)
    d(X, Y) = min_Q ‖X − Y Q‖_F            mean: X that makes Σ w_i d(X, X_i)² least            ΔW = B A of the mean

The balanced factors of ΔW are unique up to O(k), so that the gauge of the inputs does not matter, and d is the
Bures–Wasserstein distance of X Xᵀ and Y Yᵀ. The total space is flat: its exponential map is X + ξ, and a step of
gradient descent, X ← Σ w_i X_i Q_i with Q_i the Procrustes rotation of X_i to X, needs no other retraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import LorascopeError
from lorascope.merge.checks import check_least, convex
from lorascope.merge.joint import columns_of, rows_of
from lorascope.merge.method import Base, Parts, Product

_SETTLED, _UNALIGNED = 1e-12, 1e-12


@dataclass(frozen=True)
class Frechet(Base):
    """Of the rank k of the adapter with the largest, updates of less padded with zeros. Weights are not negative.

    The definition is this package's own, after the idea of averaging on the quotient (GeoMerge). The search starts at
    the best rank-k part of Σ w_i ΔW_i and goes down from there: to the nearest minimum, which need not be the only
    one. Directions that can be aligned in any way count as zero, the mean of all ways.

    Args:
        iterations: steps at most; where they are not enough to settle to 1e-12, the merge is refused.
    """

    iterations: int = 10_000

    name: ClassVar[str] = "frechet"
    formula: ClassVar[str] = "B A of argmin_X Σ w_i min_Q ‖X − X_i Q‖², X_i = [B_i; A_iᵀ] balanced, Σ w_i = 1"
    reference: ClassVar[str] = "own definition; the idea: GeoMerge, da Silva et al. (arXiv 2604.27155)"

    def __post_init__(self) -> None:
        check_least("iterations", self.iterations, 1)

    def __call__(self, parts: Parts) -> Product:
        """In the coordinates of the joint bases, where all is as small as the ranks together."""
        parts = parts.counting
        weights = convex(parts.weights, self.name)
        U, V = columns_of(parts.pairs).basis, rows_of(parts.pairs).basis
        cores = [(U.T @ pair.B) @ (pair.A @ V) for pair in parts.pairs]
        rank = max((_rank(core, max(parts.shape)) for core in cores), default=0)
        if rank == 0:
            return Product(U[:, :0], V[:, :0].T)
        side = max(parts.shape)
        points = [_balanced(core, rank, side) for core in cores]
        mean = _balanced(np.sum([w * core for w, core in zip(weights, cores, strict=True)], axis=0), rank, side)
        for _ in range(self.iterations):
            new = np.sum([w * _aligned(point, mean) for w, point in zip(weights, points, strict=True)], axis=0)
            moved, mean = float(np.linalg.norm(new - mean)), new
            if moved <= _SETTLED * float(np.linalg.norm(mean)):
                return Product(U @ mean[: U.shape[1]], mean[U.shape[1] :].T @ V.T)
        raise LorascopeError(
            "the Fréchet mean did not settle",
            key=parts.site,
            expected=f"steps below {_SETTLED} of its norm within {self.iterations} iterations",
            found=f"a step of {moved / float(np.linalg.norm(mean)):.2g}",
            hint="--option iterations=… for more, or another method",
        )


def _rank(core: NDArray[Any], side: int) -> int:
    S = np.linalg.svd(core, compute_uv=False)
    return int(np.count_nonzero(S > np.finfo(np.float64).eps * side * S[0])) if S.size else 0


def _balanced(core: NDArray[Any], rank: int, side: int) -> NDArray[Any]:
    """[P √S; W √S] of the ``rank`` leading singular triples, [p + q, rank]."""
    P, S, Wh = np.linalg.svd(core, full_matrices=False)
    result = np.zeros((sum(core.shape), rank))
    kept = min(rank, _rank(core, side))  # the root of a rounding error would be 1e-8
    result[:, :kept] = np.concatenate([P[:, :kept], Wh[:kept].T]) * np.sqrt(S[:kept])
    return result


def _aligned(point: NDArray[Any], mean: NDArray[Any]) -> NDArray[Any]:
    """X_i Q with the Q that brings it nearest to the mean; what any Q leaves as near is its mean over all, zero."""
    P, S, Qh = np.linalg.svd(point.T @ mean)
    kept = _UNALIGNED * float(np.linalg.norm(point) * np.linalg.norm(mean)) < S
    return (point @ P[:, kept]) @ Qh[kept]


METHOD = Frechet
