"""The exact distance of two adapters, sites matched by bare name and shape; one that an adapter lacks is zero there."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lorascope.adapter import Adapter, LowRank
from lorascope.adapter.rows import row_blocks
from lorascope.adapter.widening import MAX_DENSE
from lorascope.retrieve.sites import STACKED, Key, at_site, keys_of, scaled_factors, stacks
from lorascope.symmetry.cores import distance, inner, norm

_WIDE = 64  # columns of structured factors beyond which their rows are formed in less time


class Measured(NamedTuple):
    """‖ΔW₁ − ΔW₂‖, both norms and the inner product; ``shared``: how many sites both have."""

    distance: float
    norm1: float
    norm2: float
    inner: float
    shared: int

    @property
    def relative_distance(self) -> float:
        """distance / max(‖ΔW₁‖, ‖ΔW₂‖); of two zero updates 0 where they have a site in common, else 1."""
        larger = max(self.norm1, self.norm2)
        if larger == 0:
            return 0.0 if self.shared else 1.0
        return self.distance / larger

    @property
    def cosine(self) -> float | None:
        """None where one of the two is zero."""
        size = self.norm1 * self.norm2
        return max(-1.0, min(1.0, self.inner / size)) if size > 0 else None


def measured(one: Adapter, other: Adapter) -> Measured:
    """Compare two adapters by QR of the stacked factors.

    Raises:
        AdapterError: where ΔW depends on the base weight, or is not finite.

    >>> from lorascope.adapter import LowRank
    >>> one = Adapter({"model.q": LowRank(np.eye(3, 1) * 3, np.eye(1, 2))})
    >>> two = Adapter({"q": LowRank(np.eye(3, 1), np.eye(1, 2)), "k": LowRank(np.eye(3, 1), np.eye(1, 2))})
    >>> measured(one, two).inner, round(measured(one, two).distance ** 2, 12)
    (3.0, 5.0)
    """
    mine, theirs = keys_of(one), keys_of(other)
    both = [key for key in mine if key in theirs]
    distances, norms1, norms2, products = [0.0], [0.0], [0.0], [0.0]
    alike: dict[tuple[int, int, int, int], list[Key]] = {}
    for key in both:
        one_rank, other_rank = one[mine[key]].rank, other[theirs[key]].rank
        is_plain = isinstance(one[mine[key]], LowRank) and isinstance(other[theirs[key]], LowRank)
        if not is_plain and one_rank + other_rank > _WIDE and key.out * key.in_ <= MAX_DENSE:
            own = _by_rows(one, mine[key], other, theirs[key])
            for total, value in zip((distances, norms1, norms2, products), own, strict=True):
                total.append(value)
            continue
        alike.setdefault((key.out, key.in_, one_rank, other_rank), []).append(key)
    for (out, in_, rank1, rank2), keys in alike.items():
        step = max(1, STACKED // max(1, (rank1 + rank2) * (out + in_)))
        for begin in range(0, len(keys), step):
            chunk = keys[begin : begin + step]
            left = [scaled_factors(one, mine[key]) for key in chunk]
            right = [scaled_factors(other, theirs[key]) for key in chunk]
            (B1, A1), (B2, A2) = ((np.stack([p[0] for p in s]), np.stack([p[1] for p in s])) for s in (left, right))
            distances += distance(B1, A1, B2, A2).tolist()
            norms1 += norm(B1, A1).tolist()
            norms2 += norm(B2, A2).tolist()
            products += inner(B1, A1, B2, A2).tolist()
    for adapter, names, others, own in ((one, mine, theirs, norms1), (other, theirs, mine, norms2)):
        for stack in stacks(adapter, {key: site for key, site in names.items() if key not in others}):
            alone = norm(stack.B, stack.A).tolist()
            own += alone
            distances += alone
    return Measured(math.hypot(*distances), math.hypot(*norms1), math.hypot(*norms2), math.fsum(products), len(both))


def _by_rows(one: Adapter, site1: str, other: Adapter, site2: str) -> tuple[float, float, float, float]:
    """Distance, norms and inner product of two updates of high rank, from blocks of rows of both."""
    rows1 = at_site(one, site1, lambda: one[site1].rows(np.float64))
    rows2 = at_site(other, site2, lambda: other[site2].rows(np.float64))
    found = np.zeros(3)
    product = 0.0
    for block in row_blocks(one[site1].shape):
        left, right = rows1(block), rows2(block)
        found = np.hypot(found, [np.linalg.norm(part) for part in (left - right, left, right)])
        product += float(np.vdot(left, right))
    return float(found[0]), float(found[1]), float(found[2]), product
