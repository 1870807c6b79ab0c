"""DARE in place of the trimming of TIES: drop at random, elect a sign for each entry, average what agrees with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.checks import check_finite, check_share
from lorascope.merge.dense import in_blocks
from lorascope.merge.dropping import kept_at_random
from lorascope.merge.election import elected_mean
from lorascope.merge.method import Base, Parts, Rows


@dataclass(frozen=True)
class DareTies(Base):
    """Weights act relative to each other, as in ``ties``; masks are those of ``dare`` with the same seed.

    Args:
        density: the probability that an entry stays.
        factor: what the result is multiplied by.
    """

    density: float = 0.5
    factor: float = 1.0

    name: ClassVar[str] = "dare-ties"
    formula: ClassVar[str] = "as ties, with (M_i ⊙ ΔW_i) / density in place of trim(ΔW_i)"
    reference: ClassVar[str] = "DARE with TIES, Yu et al. (arXiv 2311.03099), on ΔW"
    is_symmetric: ClassVar[bool] = False
    is_idempotent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("density", self.density)
        check_finite("factor", self.factor)

    def __call__(self, parts: Parts) -> Rows:
        """Masks by counter, blocks of rows."""
        masks = [
            kept_at_random(parts.shape[1], self.density, parts.generator(place)) for place in range(len(parts.pairs))
        ]

        def block(rows: slice) -> NDArray[np.float64]:
            own = (
                np.where(kept(rows), pair.B[rows] @ pair.A, 0.0) / self.density
                for pair, kept in zip(parts.pairs, masks, strict=True)
            )
            return self.factor * elected_mean(own, parts.weights)

        return in_blocks(parts.shape, block)


METHOD = DareTies
