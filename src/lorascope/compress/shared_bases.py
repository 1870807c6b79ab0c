"""Two orthonormal bases that many updates of one site share, found from their factors alone.

    ΔW_i ≈ U C_i Vᵀ,  C_i = Uᵀ ΔW_i V        U [out, k], V [in, k]: what is kept is Σ w_i² ‖Uᵀ ΔW_i V‖²

    eigen   U: leading eigenvectors of Σ w_i² ΔW_i ΔW_iᵀ,  V: of Σ w_i² ΔW_iᵀ ΔW_i
    joint   from there, in turn: U of Σ w_i² ΔW_i V Vᵀ ΔW_iᵀ, then V of Σ w_i² ΔW_iᵀ U Uᵀ ΔW_i, each the best beside the
            other, so that what is kept never falls

``eigen`` loses at most twice the sum of squares that the best bases of its width lose (it takes each side's best),
``joint`` no more than ``eigen``. Both depend on ΔW alone and not on the gauge. The eigenvectors are left singular
vectors of the factors side by side: squares are not formed.

Source: Gabrielsson et al. (2024), Compress then Serve, arXiv 2407.00066, section 4 (``joint``: JD-Full); Kaushik et al.
(2025), EigenLoRAx, arXiv 2502.04700, whose principal subspaces are those of stacked factors and depend on the gauge; De
Lathauwer et al. (2000), on HOSVD and HOOI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorascope.symmetry.common_sites import Pair

Way = Literal["joint", "eigen"]

_ROUNDS = 50
_GAIN = 1e-7  # of what is kept: less is not worth another round


@dataclass(frozen=True, eq=False)
class Bases:
    """U [out, ku] and V [in, kv], orthonormal columns, float64; the widths are at most what was asked for."""

    U: NDArray[Any]
    V: NDArray[Any]

    def core(self, pair: Pair) -> Pair:
        """UᵀΔW V as a product [ku, r], [r, kv]."""
        return Pair(self.U.T @ pair.B, pair.A @ self.V)


def shared_bases(pairs: Sequence[Pair], weights: NDArray[np.float64], width: int, way: Way = "joint") -> Bases:
    """The bases for some updates of one site.

    Args:
        pairs: n factor pairs [out, r_i], [r_i, in], float64.
        weights: w_i [n]; 1 / ‖ΔW_i‖ of the whole adapter makes all relative errors count alike.
        width: k, columns of each basis at most.
        way: how they are found.

    >>> one, two = Pair(np.eye(3, 1), np.eye(1, 3)), Pair(np.eye(3, 1), np.eye(1, 3, 1))
    >>> bases = shared_bases([one, two], np.ones(2), 2)
    >>> bases.U.shape, bases.V.shape      # both have one column space
    ((3, 1), (3, 2))
    """
    left, right = _reduced([pair.B for pair in pairs]), _reduced([pair.A.T for pair in pairs])
    rank = max(1, *(pair.B.shape[1] for pair in pairs))
    B = np.zeros((len(pairs), left.shape[1], rank))
    A = np.zeros((len(pairs), rank, right.shape[1]))
    for number, (pair, weight) in enumerate(zip(pairs, weights, strict=True)):
        B[number, :, : pair.B.shape[1]] = weight * (left.T @ pair.B)
        A[number, : pair.A.shape[0]] = pair.A @ right
    At = A.transpose(0, 2, 1)
    Bt = B.transpose(0, 2, 1)
    U, _ = _leading(B, A, width)
    V, kept = _leading(At, Bt, width)
    if way == "joint":
        before = 0.0
        for _ in range(_ROUNDS):
            U, _ = _leading(B, A @ V, width)
            V, kept = _leading(At, Bt @ U, width)
            if kept - before <= _GAIN * kept:
                break
            before = kept
    return Bases(left @ U, right @ V)


def _reduced(sides: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """An orthonormal basis of all columns together: whatever is found lies in it."""
    size, count = sides[0].shape[0], sum(side.shape[1] for side in sides)
    if count >= size or count == 0:
        return np.eye(size, max(1, min(size, count)))  # one column where there is nothing: a basis has one at least
    return np.linalg.qr(np.concatenate(sides, axis=1)).Q


def _leading(X: NDArray[Any], Y: NDArray[Any], width: int) -> tuple[NDArray[Any], float]:
    """The leading left singular vectors of the products X_i Y_i side by side, and Σ σ² of them.

    X [n, p, r], Y [n, r, q]; of Y only R of Yᵀ = Q R counts, which is r × r.
    """
    if Y.shape[2] > Y.shape[1]:
        Y = np.linalg.qr(Y.transpose(0, 2, 1)).R.transpose(0, 2, 1)
    rows = (X @ Y).transpose(0, 2, 1).reshape(-1, X.shape[1])  # (X_i Y_i)ᵀ below one another
    if rows.shape[0] > rows.shape[1]:
        rows = np.linalg.qr(rows).R
    _, S, Wh = np.linalg.svd(rows, full_matrices=False)
    smallest = np.finfo(np.float64).eps * max(rows.shape) * (S[0] if len(S) else 0.0)
    count = max(1, min(width, int(np.count_nonzero(smallest < S))))
    return Wh[:count].T, float(np.sum(S[:count] ** 2))
