"""The first adapter without the others: to detach a concept, or to see what a safety adapter holds back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import LorascopeError
from lorascope.merge.method import WeightedSum


@dataclass(frozen=True)
class Subtract(WeightedSum):
    """The first weight is taken as it is, the others are subtracted; by default each is 1."""

    name: ClassVar[str] = "subtract"
    formula: ClassVar[str] = "w_1 ΔW_1 − Σ_{i>1} w_i ΔW_i"
    reference: ClassVar[str] = "negation of task vectors, Ilharco et al. (arXiv 2212.04089)"
    is_experimental: ClassVar[bool] = True
    is_symmetric: ClassVar[bool] = False
    is_idempotent: ClassVar[bool] = False

    def default_weights(self, count: int) -> NDArray[np.float64]:
        """1 each."""
        return np.ones(count)

    def check(self, count: int) -> None:
        """Two at least."""
        if count < 2:
            raise LorascopeError("there is nothing to subtract", expected="two or more adapters", found=count)

    def factors(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The first weight, and the others with the opposite sign."""
        return np.where(np.arange(len(weights)) == 0, weights, -weights)


METHOD = Subtract
