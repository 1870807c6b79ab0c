"""The weighted sum of updates of which only the largest entries are left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.checks import check_share
from lorascope.merge.dense import blocks_of, in_blocks
from lorascope.merge.election import threshold, trimmed
from lorascope.merge.method import Base, Parts, Rows


@dataclass(frozen=True)
class MagnitudePrune(Base):
    """By default each weight is 1. Changes of biases are summed with the weights and not pruned.

    Args:
        density: the share of entries of each update that is kept, the largest ones.
    """

    density: float = 0.5

    name: ClassVar[str] = "magnitude-prune"
    formula: ClassVar[str] = "Σ w_i trim(ΔW_i)"
    reference: ClassVar[str] = "magnitude_prune_svd of PEFT's add_weighted_adapter"
    is_idempotent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("density", self.density)

    def default_weights(self, count: int) -> NDArray[np.float64]:
        """1 each."""
        return np.ones(count)

    def bias_weights(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weights."""
        return weights

    def __call__(self, parts: Parts) -> Rows:
        """The thresholds once, then blocks of rows."""
        size = parts.shape[0] * parts.shape[1]
        own = [
            (pair, float(weight), threshold(lambda pair=pair: blocks_of(pair), size, self.density))
            for pair, weight in zip(parts.pairs, parts.weights, strict=True)
            if pair.B.shape[1]
        ]

        def block(rows: slice) -> NDArray[np.float64]:
            result = np.zeros((rows.stop - rows.start, parts.shape[1]))
            for pair, weight, least in own:
                result += weight * trimmed(pair.B[rows] @ pair.A, least)
            return result

        return in_blocks(parts.shape, block)


METHOD = MagnitudePrune
