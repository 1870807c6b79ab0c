"""DARE: drop entries of each update at random, scale up those that stay, and sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.checks import check_share
from lorascope.merge.dense import in_blocks
from lorascope.merge.dropping import kept_at_random
from lorascope.merge.method import Base, Parts, Rows


@dataclass(frozen=True)
class Dare(Base):
    """The weighted sum in expectation. By default each weight is 1; changes of biases are summed and not dropped.

    The masks depend on the seed, the site and the place of the adapter in the list, and so on the order.

    Args:
        density: the probability that an entry stays (1 − p of the paper).
    """

    density: float = 0.5

    name: ClassVar[str] = "dare"
    formula: ClassVar[str] = "Σ w_i (M_i ⊙ ΔW_i) / density, M_i random of 0 and 1 with mean density"
    reference: ClassVar[str] = "DARE, Yu et al. (arXiv 2311.03099), on ΔW"
    is_symmetric: ClassVar[bool] = False
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
        """Masks by counter: no numbers but those of the rows that are asked for."""
        masks = [
            kept_at_random(parts.shape[1], self.density, parts.generator(place)) for place in range(len(parts.pairs))
        ]

        def block(rows: slice) -> NDArray[np.float64]:
            result = np.zeros((rows.stop - rows.start, parts.shape[1]))
            for pair, weight, kept in zip(parts.pairs, parts.weights, masks, strict=True):
                if pair.B.shape[1]:
                    result += np.where(kept(rows), (pair.B[rows] * (weight / self.density)) @ pair.A, 0.0)
            return result

        return in_blocks(parts.shape, block)


METHOD = Dare
