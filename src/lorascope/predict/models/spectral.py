"""Spectral: ridge on statistics of the singular values of every site. Invariant, and blind to all directions.

Against ``svd`` it trades the network for logarithms, effective ranks and shares that a linear model can use.
"""

from dataclasses import dataclass
from typing import ClassVar

from lorascope.predict.models._fixed_ridge import FixedRidge
from lorascope.predict.models.ridge import Ridge


@dataclass(frozen=True)
class Spectral(FixedRidge):
    """No options."""

    ridge: ClassVar[Ridge] = Ridge(features=("spectral-statistics",))
    name: ClassVar[str] = "spectral"
    formula: ClassVar[str] = "Σ_sites ⟨c, φ(σ₁ … σ_r)⟩ + c₀, φ the spectral-statistics, penalty by leave-one-out"
    reference: ClassVar[str] = "lorascope; the linear counterpart of the SVD model of Learning on LoRAs"


MODEL = Spectral
