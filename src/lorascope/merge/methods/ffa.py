"""FFA-LoRA: where all adapters have one A, the mean of the updates has their rank, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.checks import check_tolerance, normalised
from lorascope.merge.method import Base, Parts, Product
from lorascope.merge.shared_factors import shared_rows


@dataclass(frozen=True)
class Ffa(Base):
    """The mean, for adapters whose A is the same up to its gauge (A_i = M_i A); others are refused with the deviation.

    Args:
        tolerance: how much of an update may lie outside of the shared rows, relative to its norm; it is left out.
    """

    tolerance: float = 1e-5

    name: ClassVar[str] = "ffa"
    formula: ClassVar[str] = "(Σ w_i ΔW_i V) Vᵀ, V the rows that all A_i share, Σ w_i = 1"
    reference: ClassVar[str] = "FFA-LoRA, Sun et al. (arXiv 2403.12313), up to the gauge of A"
    is_experimental: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_tolerance("tolerance", self.tolerance)

    def bias_weights(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weights over their sum."""
        return normalised(weights, self.name)

    def __call__(self, parts: Parts) -> Product:
        """Of the rank of one adapter."""
        parts = parts.counting
        V = shared_rows(parts.pairs, self.tolerance, parts.site)
        weights = normalised(parts.weights, self.name)
        own = [w * (pair.B @ (pair.A @ V)) for w, pair in zip(weights, parts.pairs, strict=True)]
        return Product(np.sum(own, axis=0), V.T)


METHOD = Ffa
