"""The mean of the updates: what federated averaging means to compute where it averages factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import LorascopeError
from lorascope.merge.method import WeightedSum


@dataclass(frozen=True)
class Average(WeightedSum):
    """Weights are divided by their sum; a site that an adapter does not have counts as zero."""

    name: ClassVar[str] = "average"
    formula: ClassVar[str] = "Σ w_i ΔW_i / Σ w_i"
    reference: ClassVar[str] = "model soups, Wortsman et al. (arXiv 2203.05482), on ΔW"

    def factors(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weights over their sum.

        Raises:
            LorascopeError: where that is zero.
        """
        total = float(weights.sum())
        if total == 0:
            raise LorascopeError("the weights of an average sum to zero", found=weights.tolist(), hint="use `linear`")
        return weights / total


METHOD = Average
