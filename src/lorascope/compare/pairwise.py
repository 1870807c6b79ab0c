"""Inner products and distances of all pairs of adapters: large matrix products, and QR where those cannot tell.

    ⟨ΔW_i, ΔW_j⟩ = Σ_sites Σ_ab (B_iᵀ B_j)_ab (A_i A_jᵀ)_ab

With the factors of many adapters side by side, the two parentheses are blocks of two large products per site. Then

    d² = g_ii + g_jj − 2 g_ij,   |error| ≤ γ (m_i + m_j)²,   m_i² = Σ_sites ‖B_i‖²‖A_i‖²,   γ = (out + in + r² + S) eps

is what float64 leaves of the expansion. Where that is more than ``tolerance`` of d² itself, the distance comes from QR
of the stacked factors instead, which loses nothing (``symmetry.cores.distance``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.errors import AdapterError
from lorascope.symmetry.common_sites import CommonSites, Pair
from lorascope.symmetry.cores import distance, inner

TOLERANCE = 1e-6
"""Relative error that a distance of the fast way may have."""

_COLUMNS = 1 << 10  # columns of factors in one block: products of 8 MB
_STACKED = 1 << 22  # numbers of stacked factors that go through QR at once: 32 MB


class Pairwise(NamedTuple):
    """``gram`` [n, n] of inner products, ``distance`` [n, n], both float64; ``recomputed``: pairs that QR settled."""

    gram: NDArray[np.float64]
    distance: NDArray[np.float64]
    recomputed: int

    @property
    def norms(self) -> NDArray[np.float64]:
        """‖ΔW_i‖ [n]."""
        return np.sqrt(np.diagonal(self.gram))

    @property
    def cosine(self) -> NDArray[np.float64]:
        """[n, n], in [−1, 1]; NaN where one of the two is zero."""
        sizes = np.outer(self.norms, self.norms)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.clip(np.where(sizes > 0, self.gram / sizes, np.nan), -1.0, 1.0)

    @property
    def relative_distance(self) -> NDArray[np.float64]:
        """distance / max(‖ΔW_i‖, ‖ΔW_j‖) [n, n]; 0 where both are zero."""
        return relative(self.distance, self.norms)


def relative(distances: NDArray[np.float64], norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances [n, n] over the larger of the two norms, 0 where both are zero."""
    larger = np.maximum(norms[:, None], norms[None, :])
    return np.divide(distances, larger, out=np.zeros_like(distances), where=larger > 0)


def pairwise(
    adapters: Sequence[Adapter] | CommonSites,
    *,
    sites: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
    advance: Callable[[int], Any] | None = None,
) -> Pairwise:
    """All pairs of adapters of one base; a site that one lacks is ΔW = 0 there.

    Site by site, so that memory holds the factors of one site, and what is n × n.

    Args:
        adapters: n of them, of any ranks and scales.
        sites: which are compared; by default those of any adapter.
        tolerance: relative error of a distance, beyond which QR is taken.
        advance: called with the number of sites done.

    Raises:
        AdapterError: as ``CommonSites``, and where ΔW is beyond the range of float64.

    >>> from lorascope.adapter import LowRank
    >>> adapters = [Adapter({"q": LowRank(np.eye(3, 1) * size, np.eye(1, 2))}) for size in (1.0, 3.0, 3.0)]
    >>> found = pairwise(adapters)
    >>> found.distance
    array([[0., 2., 2.],
           [2., 0., 0.],
           [2., 0., 0.]])
    >>> found.recomputed
    1
    """
    common = adapters if isinstance(adapters, CommonSites) else CommonSites.of(adapters)
    chosen = common.all if sites is None else tuple(sites)
    n = len(common.adapters)
    gram, reach, unit = np.zeros((n, n)), np.zeros(n), 0.0
    for site in chosen:
        pairs = common.pairs(site, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            gram += _gram(pairs)
            reach += [float(np.vdot(pair.B, pair.B)) * float(np.vdot(pair.A, pair.A)) for pair in pairs]
        out, in_ = common.example(site).shape
        unit = max(unit, out + in_ + max(pair.B.shape[1] for pair in pairs) ** 2)
        if advance is not None:
            advance(1)
    if not (np.isfinite(gram).all() and np.isfinite(reach).all()):
        worst = int(np.argmax(~np.isfinite(np.diagonal(gram)) | ~np.isfinite(reach)))
        raise AdapterError("the update is too large to compare", file=common.names[worst])
    squares = np.diagonal(gram)[:, None] + np.diagonal(gram)[None, :] - 2 * gram
    error = (unit + len(chosen)) * np.finfo(np.float64).eps * np.add.outer(np.sqrt(reach), np.sqrt(reach)) ** 2
    doubtful = np.argwhere(np.triu(squares * (2 * tolerance) < error, 1))
    distances = np.sqrt(np.maximum(squares, 0.0))
    np.fill_diagonal(distances, 0.0)
    settled = exact_distances(common, doubtful, chosen)
    distances[doubtful[:, 0], doubtful[:, 1]] = distances[doubtful[:, 1], doubtful[:, 0]] = settled
    return Pairwise(gram, distances, len(doubtful))


def exact_distances(common: CommonSites, places: NDArray[np.int64], sites: Sequence[str]) -> NDArray[np.float64]:
    """‖ΔW_i − ΔW_j‖ by QR for each row (i, j) of ``places`` [m, 2], over these sites."""
    found = np.zeros(len(places))
    if not len(places):
        return found
    for site in sites:
        pairs = common.pairs(site, np.float64)
        out, in_ = common.example(site).shape
        largest = max(pair.B.shape[1] for pair in pairs)
        step = max(1, _STACKED // max(1, 2 * largest * (out + in_)))
        for begin in range(0, len(places), step):
            chunk = places[begin : begin + step]
            left, right = ([pairs[k] for k in column] for column in chunk.T)
            own = distance(*_stacked(left), *_stacked(right))
            found[begin : begin + step] = np.hypot(found[begin : begin + step], own)
    return found


def pairwise_reference(adapters: Sequence[Adapter]) -> Pairwise:
    """The same, pair by pair and site by site: slow and obviously right.

    >>> from lorascope.adapter import LowRank
    >>> one = Adapter({"q": LowRank(np.eye(3, 1), np.eye(1, 2))})
    >>> pairwise_reference([one, one]).gram
    array([[1., 1.],
           [1., 1.]])
    """
    common = CommonSites.of(adapters)
    n = len(adapters)
    gram, squares = np.zeros((n, n)), np.zeros((n, n))
    for site in common.all:
        pairs = common.pairs(site, np.float64)
        for i, one in enumerate(pairs):
            for j, other in enumerate(pairs):
                gram[i, j] += float(inner(*one, *other)) if one.B.shape[1] and other.B.shape[1] else 0.0
                squares[i, j] += float(distance(*_with_rank(one), *_with_rank(other))) ** 2 if i != j else 0.0
    return Pairwise(gram, np.sqrt(squares), n * (n - 1) // 2)


def _gram(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """⟨ΔW_i, ΔW_j⟩ of one site, [n, n]; adapters of like rank in one block, so that little is padded."""
    n = len(pairs)
    ranks = np.array([pair.B.shape[1] for pair in pairs])
    order = np.argsort(ranks, kind="stable")
    order = order[ranks[order] > 0]
    gram = np.zeros((n, n))
    blocks: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]] = []
    while len(order):
        count = int(np.count_nonzero(np.arange(1, len(order) + 1) * ranks[order] <= _COLUMNS)) or 1
        some, order = order[:count], order[count:]
        B, A = _stacked([pairs[k] for k in some])
        rank = B.shape[-1]
        flat_B = np.ascontiguousarray(np.moveaxis(B, 0, 1)).reshape(B.shape[1], -1)
        flat_A = A.reshape(-1, A.shape[-1])
        blocks.append((some, flat_B, flat_A, rank))
    for place, (one, B1, A1, rank1) in enumerate(blocks):
        for other, B2, A2, rank2 in blocks[place:]:
            shape = (len(one), rank1, len(other), rank2)
            own = np.einsum("iajb,iajb->ij", (B1.T @ B2).reshape(shape), (A1 @ A2.T).reshape(shape))
            gram[np.ix_(one, other)] = own
            gram[np.ix_(other, one)] = own.T
    return gram


def _stacked(pairs: Sequence[Pair]) -> tuple[NDArray[Any], NDArray[Any]]:
    """[m, out, rank] and [m, rank, in], ranks padded with zeros to the largest, and to 1."""
    rank = max(1, *(pair.B.shape[1] for pair in pairs))
    B = np.zeros((len(pairs), pairs[0].B.shape[0], rank))
    A = np.zeros((len(pairs), rank, pairs[0].A.shape[1]))
    for place, pair in enumerate(pairs):
        B[place, :, : pair.B.shape[1]] = pair.B
        A[place, : pair.A.shape[0]] = pair.A
    return B, A


def _with_rank(pair: Pair) -> tuple[NDArray[Any], NDArray[Any]]:
    B, A = _stacked([pair])
    return B[0], A[0]
