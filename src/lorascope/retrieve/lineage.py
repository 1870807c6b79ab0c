"""``lineage``: which adapters were made of which others, told from their weights alone.

    same            ‖X − Y‖ is rounding of the dtype that both are stored in
    requantised     ‖X − Y‖ is rounding of the dtype of X, which is coarser than that of Y
    scaled          X = w Y
    resized         X is, site by site, the best approximation of Y of the rank that X has
    merged          X = Σ w_i Y_i with two weights or more, to a rest of ``tolerance``: all positive, or at most
                    ``MOST_SIGNED`` of any sign where no Y_i has a larger rank than X
    continued       cos(X, Y) is at least ``cosine`` and nothing else relates them; Y, of the smaller norm, the parent

All but the last are measurements that hardly come about by chance: X lies within ``tolerance`` ‖X‖ of what is claimed.
The last is a reading of one: adapters that were trained apart have cosines near 0, and training makes ‖ΔW‖ grow as a
rule, not always. In which direction copies and scalings went, weights cannot tell where no dtype or rank was lost; nor
with weights of both signs, which every part of X = Σ w_i Y_i has in terms of the others, unless X has the largest rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.adapter.spectra import spectra_of
from lorascope.compare.pairwise import Pairwise
from lorascope.errors import LorascopeError
from lorascope.retrieve.explanation import SMALLEST, explained
from lorascope.retrieve.gathered import all_pairs, gathered
from lorascope.retrieve.merge_weights import check_scipy, few_weights
from lorascope.symmetry.canonical import thin_svd
from lorascope.symmetry.common_sites import CommonSites
from lorascope.symmetry.cores import distance
from lorascope.symmetry.truncation import truncated

Relation = Literal["same", "requantised", "scaled", "resized", "merged", "continued"]

TOLERANCE = 1e-3
"""‖X − what is claimed‖ / ‖X‖ up to which it is taken for true."""

COSINE = 0.5
"""Of adapters of which one is taken for the other trained further."""

MOST_SIGNED = 8
"""Members of a sum with weights of both signs: of many, any adapter would be one."""

_ROUNDING = 4.0  # rounding units of the factors: of two files, and of a gauge changed between


@dataclass(frozen=True)
class Edge:
    """``child`` was made of ``parents``; ``evidence`` are the numbers that say so.

    ``is_directed``: whether they tell which is the parent.
    """

    relation: Relation
    child: str
    parents: tuple[str, ...]
    evidence: dict[str, Any]
    is_directed: bool


def lineage(
    adapters: Sequence[Adapter],
    names: Sequence[str],
    *,
    tolerance: float = TOLERANCE,
    cosine: float = COSINE,
    advance: Callable[[int], Any] | None = None,
) -> list[Edge]:
    """The relations among some adapters; each is told to its nearest relative of a kind, not to all.

    Args:
        adapters: n of them; memory grows with n², time with n² and, for merges, n³.
        names: of them.
        tolerance: ``TOLERANCE``; merges that were cut or rounded coarsely need a larger one.
        cosine: ``COSINE``.
        advance: called with the number of sites done.

    Raises:
        AdapterError: where a ΔW is not known without the base weight, or is not finite.
        LorascopeError: where the tolerance or the cosine is out of its range.
        MissingExtraError: without scipy, whether or not one of the adapters is a merge.

    >>> import pytest; _ = pytest.importorskip("scipy")
    >>> from lorascope.adapter import LowRank
    >>> one = Adapter({"q": LowRank(np.diag([3.0, 1.0]), np.eye(2))})
    >>> cut = Adapter({"q": LowRank(3 * np.eye(2, 1), np.eye(1, 2))})
    >>> [(edge.relation, edge.child, edge.parents) for edge in lineage([one, cut], ["one", "cut"])]
    [('resized', 'cut', ('one',))]
    """
    if not 0 < tolerance < 1:
        raise LorascopeError("there is no such tolerance", key="tolerance", expected="between 0 and 1", found=tolerance)
    if not 0 < cosine <= 1:
        raise LorascopeError("there is no such cosine", key="cosine", expected="above 0, at most 1", found=cosine)
    check_scipy("telling merges")  # else a merge would be taken for one of its parts that was trained on
    common = gathered(adapters, names)
    found = all_pairs(common, advance)
    finder = _Finder(common, found, tolerance, cosine)
    finder.copies()
    finder.resized()
    finder.merged()
    finder.continued()
    return finder.edges


class _Finder:
    """The relations found so far, and which pairs they explain."""

    def __init__(self, common: CommonSites, found: Pairwise, tolerance: float, cosine: float) -> None:
        self.common, self.names = common, common.names
        self.gram, self.norms, self.distance = found.gram, found.norms, found.distance
        self.cosines = np.nan_to_num(found.cosine)
        self.tolerance, self.cosine = tolerance, cosine
        self.edges: list[Edge] = []
        self.related = np.eye(len(self.names), dtype=bool)
        self.copy_of = np.arange(len(self.names))
        """The first of those that are one update; ``resized`` and ``merged`` speak of these alone."""
        self.ranks: dict[int, dict[str, int]] = {}
        """Of each of these, site by site."""

    def copies(self) -> None:
        units, reach = _precision(self.common)
        for child in range(len(self.names)):
            for parent in np.argsort(units[:child], kind="stable").tolist():
                room = _ROUNDING * (units[child] + units[parent]) * max(reach[child], reach[parent])
                if self.norms[child] == 0 or self.copy_of[parent] != parent or self.distance[child, parent] > room:
                    continue
                is_finer = bool(units[child] < units[parent])
                coarse, fine = (parent, child) if is_finer else (child, parent)
                is_requantised = bool(units[coarse] > units[fine])
                evidence = {
                    "relative_distance": self._relative(child, parent),
                    "rounding": float(room / self.norms[child]),
                }
                self._add("requantised" if is_requantised else "same", coarse, (fine,), evidence, is_requantised)
                self.copy_of[child] = parent
                break

    def resized(self) -> None:
        alone = self._alone()
        self.ranks |= {k: _effective_ranks(self.common.adapters[k]) for k in alone}
        for child in alone:
            square = self.gram[child, child]
            near = [
                (self.norms[parent], parent)
                for parent in alone
                if self.norms[parent] > self.norms[child] * (1 - self.tolerance)
                and abs(self.gram[child, parent] - square) <= 3 * self.tolerance * square
                and parent != child
            ]
            for _, parent in sorted(near):
                evidence = self._cut(child, parent)
                if evidence is not None:
                    self._add("resized", child, (parent,), evidence, True)
                    break

    def _cut(self, child: int, parent: int) -> dict[str, Any] | None:
        """How far X is from the truncation of Y to the ranks of X; None where it is no truncation."""
        own, whole = self.ranks[child], self.ranks[parent]
        some = CommonSites(
            (self.common.adapters[child], self.common.adapters[parent]), (self.names[child], self.names[parent])
        )
        if sum(own.values()) >= sum(whole.values()):
            return None
        errors = [0.0]
        for site in some.all:
            one, other = some.pairs(site, np.float64)
            if not other.B.shape[1]:
                return None
            cut = truncated(thin_svd(*other), own.get(site, 0))
            errors.append(float(distance(*one, cut.B, cut.A)) if one.B.shape[1] else math.hypot(*cut.B.flat))
        error = float(math.hypot(*errors) / self.norms[child])
        if error > self.tolerance:
            return None
        return {
            "relative_error": error,
            "ranks": [max(own.values()), max(whole.values())],
            "relative_distance": self._relative(child, parent),
        }

    def merged(self) -> None:
        alone = np.array(self._alone(), int)
        if len(alone) < 2:
            return
        sizes = self.norms[alone]
        unit = self.gram[np.ix_(alone, alone)] / np.outer(sizes, sizes)
        # the distance of each to the span of the others, that of the ridge being well below the tolerance
        spans = np.reciprocal(np.diagonal(np.linalg.inv(unit + 1e-3 * self.tolerance**2 * np.eye(len(alone)))))
        near = [child for child, d2 in zip(alone.tolist(), spans.tolist(), strict=True) if d2 <= 4 * self.tolerance**2]
        left = near
        # in terms of a sum that was told, its members are sums too: what is likelier comes first
        for is_signed, is_larger_allowed in ((False, False), (True, False), (False, True)):
            left = sorted(left, key=lambda child: -self._rank(child)) if is_signed else left
            left = [
                k for k in left if not self._sum(k, alone, is_signed=is_signed, is_larger_allowed=is_larger_allowed)
            ]

    def _sum(self, child: int, alone: NDArray[np.int64], *, is_signed: bool, is_larger_allowed: bool) -> bool:
        """Whether X is a sum of others, which is then told; members of larger rank than X are what cut sums have."""
        rank = self._rank(child)
        others = [k for k in alone.tolist() if is_larger_allowed or self._rank(k) <= rank]
        gram = self.gram.copy()
        left_out = ~np.isin(np.arange(len(self.names)), others) | self.related[child]
        gram[left_out] = gram[:, left_out] = 0.0
        products, size = np.where(left_out, 0.0, self.gram[child]), float(self.norms[child])
        weights = few_weights(gram, products, size, smallest=SMALLEST, is_signed=is_signed)
        members = np.flatnonzero(weights).tolist()
        if is_signed and len(members) > MOST_SIGNED:
            return False
        is_directed = len(members) > 1 and not (is_signed and max(map(self._rank, members)) == rank)
        told = explained(self.common, child, weights, self.gram)
        if not told.parts or told.relative_rest > self.tolerance:
            return False
        evidence = {
            "weights": [part.weight for part in told.parts],
            "relative_rest": told.relative_rest,
            "weight_error": told.weight_error,
        }
        parents = tuple(part.place + int(part.place >= child) for part in told.parts)
        self._add("merged" if len(parents) > 1 else "scaled", child, parents, evidence, is_directed)
        return True

    def continued(self) -> None:
        alone = self._alone()
        for child in alone:
            earlier = [
                (self.cosines[child, parent], parent)
                for parent in alone
                if self.norms[parent] < self.norms[child]
                and self.cosines[child, parent] >= self.cosine
                and not self.related[child, parent]
            ]
            if earlier:
                cosine, parent = max(earlier)
                growth = float(self.norms[child] / self.norms[parent])
                evidence = {
                    "cosine": float(cosine),
                    "growth": growth,
                    "relative_distance": self._relative(child, parent),
                }
                self._add("continued", child, (parent,), evidence, False)

    def _alone(self) -> list[int]:
        """One of each group of copies, zero updates left aside."""
        return [k for k in range(len(self.names)) if self.copy_of[k] == k and self.norms[k] > 0]

    def _rank(self, one: int) -> int:
        """Of all sites together."""
        return sum(self.ranks[one].values())

    def _relative(self, one: int, other: int) -> float:
        return float(self.distance[one, other] / max(self.norms[one], self.norms[other]))

    def _add(
        self, relation: Relation, child: int, parents: tuple[int, ...], evidence: dict[str, Any], is_directed: bool
    ) -> None:
        for parent in parents:
            self.related[child, parent] = self.related[parent, child] = True
        names = tuple(self.names[parent] for parent in parents)
        self.edges.append(Edge(relation, self.names[child], names, evidence, is_directed))


def _effective_ranks(adapter: Adapter) -> dict[str, int]:
    return {site: spectrum.effective_rank for site, spectrum in spectra_of(adapter).items()}


def _precision(common: CommonSites) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each adapter the rounding unit of its coarsest dtype, and √Σ (|s| ‖B‖ ‖A‖)², what that is relative to."""
    units, squares = np.zeros(len(common.adapters)), np.zeros(len(common.adapters))
    for place, adapter in enumerate(common.adapters):
        for update in adapter.values():
            for stored in update.stored.values():
                if stored.dtype.kind == "f" or stored.dtype.name.startswith(("float", "bfloat")):
                    units[place] = max(units[place], float(ml_dtypes.finfo(stored.dtype).eps) / 2)
    for site in common.all:
        for place, (B, A) in enumerate(common.pairs(site, np.float64)):
            squares[place] += float(np.vdot(B, B)) * float(np.vdot(A, A))
    return units, np.sqrt(squares)
