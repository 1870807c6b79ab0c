"""How far the finetune moved each weight: ½ log(‖ΔW‖_F² + ε²), one number per site."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float

from lorascope.features.feature import Change
from lorascope.symmetry import SiteStack
from lorascope.symmetry.arrays import Array, namespace

FLOOR = 1e-6
"""ε: an untrained site has log ε, an outlier that stays finite."""


def log_norm(S: Float[Array, "*sites k"], floor: Any = FLOOR) -> Float[Array, "*sites 1"]:
    """½ log(Σ σ² + ε²) with ε = ``floor``, a number or one for each site, [*sites, 1].

    >>> import numpy as np
    >>> log_norm(np.array([[3.0, 4.0], [0.0, 0.0]]), 1.0).round(3)
    array([[1.629],
           [0.   ]])
    """
    xp = namespace(S)
    return 0.5 * xp.log(xp.sum(S * S, axis=-1, keepdims=True) + floor * floor)


@dataclass(frozen=True)
class LogNorm:
    """½ log(Σ σ² + ε²)."""

    name: ClassVar[str] = "log-norm"
    formula: ClassVar[str] = "½ log(‖ΔW‖_F² + ε²)"
    reference: ClassVar[str] = "the norm baseline of weight-space learning"
    sees: ClassVar[frozenset[Change]] = frozenset({"scale"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"sign", "rotate out", "rotate in"})

    def __call__(self, stack: SiteStack) -> Any:
        return log_norm(stack.svd.S)


FEATURE = LogNorm
