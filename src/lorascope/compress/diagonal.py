"""Shared factors with a diagonal core for each adapter: k numbers of an adapter at a site.

    ΔW_i ≈ U diag(c_i) Vᵀ        U [out, k], V [in, k] of no special form, the loss Σ w_i² ‖ΔW_i − U diag(c_i) Vᵀ‖²

Each of U, V and all c_i is in turn the least-squares solution beside the others, so that the loss never rises:

    c_i = (UᵀU ∘ VᵀV)⁻¹ diag(Uᵀ ΔW_i V)      U = [Σ w_i² ΔW_i V diag(c_i)] (VᵀV ∘ Σ w_i² c_i c_iᵀ)⁻¹      V likewise

It starts from the ``joint`` bases of width k, turned to the singular vectors of the core of the weighted sum, and ends
in a local optimum.

Source: Gabrielsson et al. (2024), Compress then Serve, arXiv 2407.00066, section 4.2 (JD-Diag); the turns are those of
CANDECOMP/PARAFAC (Harshman 1970).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.compress.shared_bases import shared_bases
from lorascope.symmetry.common_sites import Pair

_ROUNDS = 100
_GAIN = 1e-6  # of the loss


class Diagonal(NamedTuple):
    """U [out, k], V [in, k], c [n, k]; float64."""

    U: NDArray[Any]
    V: NDArray[Any]
    c: NDArray[Any]


def diagonal_factors(pairs: Sequence[Pair], weights: NDArray[np.float64], width: int) -> Diagonal:
    """The factors for some updates of one site.

    Args:
        pairs: n factor pairs [out, r_i], [r_i, in], float64.
        weights: w_i [n].
        width: k at most.

    >>> one, two = Pair(np.eye(3, 1), np.eye(1, 3)), Pair(2 * np.eye(3, 1), np.eye(1, 3))
    >>> U, V, c = diagonal_factors([one, two], np.ones(2), 1)
    >>> bool(np.isclose(c[1, 0], 2 * c[0, 0]))
    True
    """
    bases = shared_bases(pairs, weights, width)
    count = min(bases.U.shape[1], bases.V.shape[1])
    cores = [bases.core(pair) for pair in pairs]
    mean = np.sum([weight * core.B @ core.A for weight, core in zip(weights, cores, strict=True)], axis=0)
    P, _, Qh = np.linalg.svd(mean)
    U, V = bases.U @ P[:, :count], bases.V @ Qh.T[:, :count]
    scaled = [Pair(weight * pair.B, pair.A) for weight, pair in zip(weights, pairs, strict=True)]
    c, before = np.zeros((len(pairs), count)), 0.0
    for _ in range(_ROUNDS):
        U, V = (X / np.maximum(np.linalg.norm(X, axis=0), np.finfo(np.float64).tiny) for X in (U, V))
        inside = np.stack([np.sum((U.T @ pair.B) * (pair.A @ V).T, axis=1) for pair in scaled])
        c = _solved((U.T @ U) * (V.T @ V), inside.T).T
        kept = float(np.sum(c * inside))  # Σ w² ‖ΔW‖² − loss
        if kept - before <= _GAIN * kept:
            break
        before = kept
        both = list(zip(scaled, c, strict=True))
        U = _solved((V.T @ V) * (c.T @ c), np.sum([pair.B @ (pair.A @ V * own) for pair, own in both], axis=0).T).T
        V = _solved((U.T @ U) * (c.T @ c), np.sum([pair.A.T @ (pair.B.T @ U * own) for pair, own in both], axis=0).T).T
    safe = np.where(weights > 0, weights, 1.0)
    return Diagonal(U, V, c / safe[:, None])


def _solved(square: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """The least-squares solution of a positive semidefinite system, the shortest where it has many."""
    return np.linalg.lstsq(square, right, rcond=None)[0]
