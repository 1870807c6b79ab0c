"""Norms: ridge on log ‖ΔW‖_F of every site. How much of a label is told by how far each weight was moved."""

from dataclasses import dataclass
from typing import ClassVar

from lorascope.predict.models._fixed_ridge import FixedRidge
from lorascope.predict.models.ridge import Ridge


@dataclass(frozen=True)
class Norms(FixedRidge):
    """No options."""

    ridge: ClassVar[Ridge] = Ridge(features=("log-norm",))
    name: ClassVar[str] = "norms"
    formula: ClassVar[str] = "Σ_sites c · ½ log(‖ΔW‖_F² + ε²) + c₀, penalty by leave-one-out"
    reference: ClassVar[str] = "the norm baseline of weight-space learning"


MODEL = Norms
