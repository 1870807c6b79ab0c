"""Updates in common coordinates: one basis of all their columns, one of all their rows, found without out × in arrays.

    [ΔW_1, …, ΔW_n] = U S [V_1ᵀ, …, V_nᵀ]        [ΔW_1; …; ΔW_n] = [U_1; …; U_n] S' Vᵀ

With A_iᵀ = Q_i R_i the first has the left singular vectors of [B_1 R_1ᵀ, …, B_n R_nᵀ], whose columns are as many as the
ranks together; the second likewise. Both come from the ΔW_i alone: not from the factors, whose gauge would turn them.
They are known up to the sign of each vector (and up to rotations among equal singular values); what is done to entries
in these coordinates may depend on magnitudes and on agreement of signs between updates, which signs leave alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.symmetry.common_sites import Pair


class Spread(NamedTuple):
    """An orthonormal basis [side, k] of what several updates span on one side, and the singular values [k]."""

    basis: NDArray[Any]
    S: NDArray[Any]


def columns_of(pairs: Sequence[Pair]) -> Spread:
    """The left singular vectors of [ΔW_1, …, ΔW_n], without directions of rounding alone.

    >>> spread = columns_of([Pair(np.eye(3, 1), np.full((1, 2), 2.0)), Pair(np.eye(3, 1), np.ones((1, 2)))])
    >>> spread.basis.shape, spread.S.round(6)
    ((3, 1), array([3.162278]))
    """
    weighted = [pair.B @ np.linalg.qr(pair.A.T).R.T for pair in pairs if pair.B.shape[1]]
    out = pairs[0].B.shape[0]
    if not weighted:
        return Spread(np.zeros((out, 0)), np.zeros(0))
    U, S, _ = np.linalg.svd(np.concatenate(weighted, axis=1), full_matrices=False)
    kept = int(np.count_nonzero(S > np.finfo(S.dtype).eps * max(out, pairs[0].A.shape[1]) * S[0]))
    return Spread(U[:, :kept], S[:kept])


def rows_of(pairs: Sequence[Pair]) -> Spread:
    """The right singular vectors of [ΔW_1; …; ΔW_n], as columns [in, k]."""
    return columns_of([Pair(pair.A.T, pair.B.T) for pair in pairs])
