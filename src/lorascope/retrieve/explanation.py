"""``explain-merge``: of which adapters another was merged, with which weights, and what that leaves unexplained.

The weights come from the Gram matrix (``merge_weights``), which knows them to about half of the digits; then the rest
R = X − Σ w_i ΔW_i is formed as factors side by side, its products with the members correct the weights, and its norm is
that of QR: what is unexplained is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.errors import AdapterError, LorascopeError
from lorascope.retrieve.gathered import all_pairs, gathered
from lorascope.retrieve.merge_weights import few_weights
from lorascope.symmetry.common_sites import CommonSites, Pair
from lorascope.symmetry.cores import inner, norm

SMALLEST = 0.01
"""Share of ‖X‖ that a member adds at least."""

MUCH_LESS = 0.5
"""Share of the rest of weights ≥ 0 up to which that of signed weights is much less."""

_ROUNDS = 2


@dataclass(frozen=True)
class Part:
    """A member: its name and place among the candidates, its weight, and ‖w ΔW‖ / ‖X‖."""

    name: str
    place: int
    weight: float
    share: float


@dataclass(frozen=True, eq=False)
class MergeExplanation:
    """X = Σ weight · member + rest.

    Args:
        parts: the members, the largest share first.
        norm: ‖X‖.
        rest: ‖X − Σ w_i ΔW_i‖, exact.
        weight_error: ‖rest‖ / σ_min of the members: weights are off by no more than this in all, if what is unexplained
            is rounding and anything else than members.
        candidates: among how many.
        signed: where weights ≥ 0 were asked for and weights of any sign leave much less, the explanation by those.
    """

    parts: tuple[Part, ...]
    norm: float
    rest: float
    weight_error: float | None
    candidates: int
    signed: MergeExplanation | None = None

    @property
    def relative_rest(self) -> float:
        """``rest`` / ``norm``; 0 of a zero update."""
        return self.rest / self.norm if self.norm > 0 else 0.0


def explain_merge(
    adapter: Adapter,
    among: Sequence[Adapter],
    names: Sequence[str],
    *,
    is_signed: bool = False,
    smallest: float = SMALLEST,
    advance: Callable[[int], Any] | None = None,
) -> MergeExplanation:
    """Which of some adapters another is a weighted sum of.

    Args:
        adapter: X.
        among: the candidates; where two of them are the same update, one gets the weight.
        names: of them.
        is_signed: whether weights may be negative.
        smallest: see ``Part.share``; weights below are left out.
        advance: called with the number of sites done.

    Raises:
        AdapterError: where a ΔW is not known without the base weight, or X shares no site with any candidate.
        LorascopeError: where there are no candidates, or ``smallest`` is no share.
        MissingExtraError: without scipy.

    >>> import pytest; _ = pytest.importorskip("scipy")
    >>> from lorascope.adapter import LowRank
    >>> one, two, both = (LowRank(np.eye(3, 2) * w, np.eye(2, 3)) for w in ([1, 0], [0, 1], [0.25, 2.0]))
    >>> found = explain_merge(Adapter({"q": both}), [Adapter({"q": one}), Adapter({"q": two})], ["one", "two"])
    >>> [(part.name, round(part.weight, 9)) for part in found.parts], found.relative_rest < 1e-12
    ([('two', 2.0), ('one', 0.25)], True)
    """
    if not among:
        raise LorascopeError("there is nothing to explain it by", expected="one candidate or more", found=0)
    if not 0 < smallest < 1:
        raise LorascopeError("there is no such share", key="smallest", expected="between 0 and 1", found=smallest)
    own = str(adapter.provenance.path or "the adapter")
    common = gathered([adapter, *among], [own, *names])
    if not any(site in other for other in common.adapters[1:] for site in common.adapters[0]):
        raise AdapterError("no candidate has a site in common with it", file=own, found=f"{len(among)} candidates")
    gram = all_pairs(common, advance).gram
    whole = math.sqrt(gram[0, 0])

    def by(*, is_signed: bool) -> MergeExplanation:
        weights = few_weights(gram[1:, 1:], gram[0, 1:], whole, smallest=smallest, is_signed=is_signed)
        return explained(common, 0, np.insert(weights, 0, 0.0), gram)

    found = by(is_signed=is_signed)
    if is_signed or found.relative_rest <= smallest:
        return found
    signed = by(is_signed=True)
    return replace(found, signed=signed) if signed.rest <= MUCH_LESS * found.rest else found


def explained(
    common: CommonSites, place: int, weights: NDArray[np.float64], gram: NDArray[np.float64]
) -> MergeExplanation:
    """The adapter at ``place`` by ``weights`` [n] of all, which are corrected, and the rest measured."""
    members = np.flatnonzero(weights)
    own = gram[np.ix_(members, members)]
    found = weights[members].copy()
    rest = _rest(common, place, members, found)[0]
    for _ in range(_ROUNDS if len(members) else 0):
        products = _rest(common, place, members, found)[1]
        better = found + np.linalg.lstsq(own, products, rcond=None)[0]
        less = _rest(common, place, members, better)[0]
        if less >= rest or (np.sign(better) != np.sign(found)).any():
            break
        found, rest = better, less
    whole = math.sqrt(gram[place, place])
    smallest = math.sqrt(max(float(np.linalg.eigvalsh(own)[0]), 0.0)) if len(members) else 0.0
    parts = [
        Part(common.names[k], int(k - int(k > place)), float(w), abs(float(w)) * math.sqrt(gram[k, k]) / whole)
        for k, w in zip(members, found, strict=True)
    ]
    parts.sort(key=lambda part: -part.share)
    return MergeExplanation(
        tuple(parts), whole, rest, rest / smallest if smallest > 0 else None, len(common.adapters) - 1
    )


def _rest(
    common: CommonSites, place: int, members: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """‖R‖ and ⟨ΔW_i, R⟩ of the members, R = X − Σ w_i ΔW_i as factors side by side."""
    norms, products = [0.0], np.zeros(len(members))
    some = [common.adapters[place], *(common.adapters[k] for k in members)]
    part = CommonSites(tuple(some), tuple(common.names[k] for k in (place, *members)))
    for site in part.all:
        pairs = part.pairs(site, np.float64)
        scaled = [pairs[0], *(Pair(-w * pair.B, pair.A) for w, pair in zip(weights, pairs[1:], strict=True))]
        B, A = np.concatenate([p.B for p in scaled], axis=1), np.concatenate([p.A for p in scaled], axis=0)
        if not B.shape[1]:
            continue
        norms.append(float(norm(B, A)))
        products += [float(inner(*pair, B, A)) if pair.B.shape[1] else 0.0 for pair in pairs[1:]]
    return math.hypot(*norms), products
