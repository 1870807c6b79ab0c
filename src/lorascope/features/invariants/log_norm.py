"""How far the finetune moved each weight: ½ log(‖ΔW‖_F² + ε²), one number per site."""

from dataclasses import dataclass
from typing import Any, ClassVar

from lorascope.features.feature import Change
from lorascope.symmetry import SiteStack
from lorascope.symmetry.arrays import namespace

FLOOR = 1e-6
"""ε: an untrained site has log ε, an outlier that stays finite."""


@dataclass(frozen=True)
class LogNorm:
    """½ log(Σ σ² + ε²)."""

    name: ClassVar[str] = "log-norm"
    formula: ClassVar[str] = "½ log(‖ΔW‖_F² + ε²)"
    reference: ClassVar[str] = "the norm baseline of weight-space learning"
    sees: ClassVar[frozenset[Change]] = frozenset({"scale"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"sign", "rotate out", "rotate in"})

    def __call__(self, stack: SiteStack) -> Any:
        S = stack.svd.S
        xp = namespace(S)
        return 0.5 * xp.log(xp.sum(S * S, axis=-1, keepdims=True) + FLOOR * FLOOR)


FEATURE = LogNorm
