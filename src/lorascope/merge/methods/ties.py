"""TIES: trim each update, elect a sign for each entry, average what agrees with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.checks import check_finite, check_share
from lorascope.merge.dense import blocks_of, in_blocks
from lorascope.merge.election import elected_mean, threshold, trimmed
from lorascope.merge.method import Base, Parts, Rows


@dataclass(frozen=True)
class Ties(Base):
    """On the entries of ΔW; weights act relative to each other: in the election of signs, and in the mean.

    Args:
        density: the share of entries of each update that is kept, the largest ones.
        factor: what the result is multiplied by (λ of the paper).
    """

    density: float = 0.2
    factor: float = 1.0

    name: ClassVar[str] = "ties"
    formula: ClassVar[str] = "λ Σ' v_i / Σ' |w_i|, v_i = w_i trim(ΔW_i), over those with the sign of Σ v_i, per entry"
    reference: ClassVar[str] = "TIES, Yadav et al. (arXiv 2306.01708)"
    is_idempotent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("density", self.density)
        check_finite("factor", self.factor)

    def __call__(self, parts: Parts) -> Rows:
        """The thresholds once, then blocks of rows."""
        size = parts.shape[0] * parts.shape[1]
        least = [
            threshold(lambda pair=pair: blocks_of(pair), size, self.density) if pair.B.shape[1] else 0.0
            for pair in parts.pairs
        ]

        def block(rows: slice) -> NDArray[np.float64]:
            own = (trimmed(pair.B[rows] @ pair.A, low) for pair, low in zip(parts.pairs, least, strict=True))
            return self.factor * elected_mean(own, parts.weights)

        return in_blocks(parts.shape, block)


METHOD = Ties
