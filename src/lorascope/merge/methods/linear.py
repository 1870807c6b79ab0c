"""Task arithmetic: the weighted sum of the updates, without the cross terms B_i A_j of summed factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.method import WeightedSum


@dataclass(frozen=True)
class Linear(WeightedSum):
    """Weights may be negative: a concept is taken out by subtracting it. By default each is 1."""

    name: ClassVar[str] = "linear"
    formula: ClassVar[str] = "Σ w_i ΔW_i"
    reference: ClassVar[str] = "task arithmetic, Ilharco et al. (arXiv 2212.04089)"

    def default_weights(self, count: int) -> NDArray[np.float64]:
        """1 each."""
        return np.ones(count)

    def factors(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weights."""
        return weights


METHOD = Linear
