"""Fed-SB: where all adapters have one B and one A around a small core, the mean of the cores is the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.checks import check_tolerance, normalised
from lorascope.merge.method import Base, Parts, Product
from lorascope.merge.shared_factors import shared_columns, shared_rows


@dataclass(frozen=True)
class FedSb(Base):
    """The mean, for adapters B R_i A whose B and A are the same up to their gauge; others are refused.

    Args:
        tolerance: how much of an update may lie outside of the shared columns or rows, relative to its norm; it is
            left out.
    """

    tolerance: float = 1e-5

    name: ClassVar[str] = "fed-sb"
    formula: ClassVar[str] = "U (Σ w_i Uᵀ ΔW_i V) Vᵀ, U and V the columns and rows that all share, Σ w_i = 1"
    reference: ClassVar[str] = "Fed-SB, Singhal et al. (arXiv 2502.15436), up to the gauge of B and A"
    is_experimental: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_tolerance("tolerance", self.tolerance)

    def bias_weights(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weights over their sum."""
        return normalised(weights, self.name)

    def __call__(self, parts: Parts) -> Product:
        """Of the rank of one adapter."""
        parts = parts.counting
        U = shared_columns(parts.pairs, self.tolerance, parts.site)
        V = shared_rows(parts.pairs, self.tolerance, parts.site)
        weights = normalised(parts.weights, self.name)
        cores = [w * ((U.T @ pair.B) @ (pair.A @ V)) for w, pair in zip(weights, parts.pairs, strict=True)]
        return Product(U @ np.sum(cores, axis=0), V.T)


METHOD = FedSb
