"""Iso-C: the weighted sum with a flat spectrum, so that no direction outweighs the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.checks import check_finite, check_share
from lorascope.merge.method import Base, Parts, Product, concatenated
from lorascope.merge.spectra import flattened


@dataclass(frozen=True)
class IsoC(Base):
    """Over the directions that the sum has; published is the mean over min(out, in) values, in LoRA zeros for the most.

    Directions below ``cutoff`` · σ₁ are left out: they would be raised from rounding to the mean. By default each
    weight is 1.

    Args:
        cutoff: see there, in (0, 1].
        factor: what the result is multiplied by (α of the paper).
    """

    cutoff: float = 1e-3
    factor: float = 1.0

    name: ClassVar[str] = "iso-c"
    formula: ClassVar[str] = "σ̄ U Vᵀ, Σ w_i ΔW_i = U S Vᵀ, σ̄ the mean of its k singular values"
    reference: ClassVar[str] = "isotropic merging, Marczak et al. (arXiv 2502.04959), within the rank"
    is_idempotent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("cutoff", self.cutoff)
        check_finite("factor", self.factor)

    def default_weights(self, count: int) -> NDArray[np.float64]:
        """1 each."""
        return np.ones(count)

    def __call__(self, parts: Parts) -> Product:
        """Of the rank of the sum."""
        B, A = flattened(concatenated(parts.pairs, parts.weights), self.cutoff)
        return Product(self.factor * B, A)


METHOD = IsoC
