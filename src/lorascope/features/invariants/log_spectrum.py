"""The leading singular values of each site, in logarithms with a floor, and how concentrated they are.

The floor is relative, so that a singular value that is absent (lower rank) or lost in rounding cannot send
its logarithm to minus infinity: log σ_i is smooth down to δ of the norm and constant below.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float

from lorascope.features.feature import Change
from lorascope.features.invariants.log_norm import FLOOR
from lorascope.symmetry import SiteStack
from lorascope.symmetry.arrays import Array, namespace


def log_spectrum(
    S: Float[Array, "*sites k"], count: int, delta: float, floor: Any = FLOOR
) -> Float[Array, "*sites count"]:
    """½ log(σ_i² + δ² ‖ΔW‖² + ε²) for the ``count`` largest singular values, σ_i = 0 where there are fewer.

    ε = ``floor``, a number or one for each site, [*sites, 1].

    >>> import numpy as np
    >>> log_spectrum(np.array([np.e]), 2, 0.0).round(6)
    array([  1.      , -13.815511])
    """
    xp = namespace(S)
    energy = xp.sum(S * S, axis=-1, keepdims=True)
    absent = xp.zeros_like(energy) + xp.zeros((max(0, count - S.shape[-1]),), dtype=S.dtype)
    leading = xp.concat([S[..., :count], absent], axis=-1)
    return 0.5 * xp.log(leading * leading + delta * delta * energy + floor * floor)


@dataclass(frozen=True)
class LogSpectrum:
    """½ log(σ_i² + δ² ‖ΔW‖² + ε²) for the ``count`` largest σ, zeros where the rank is smaller."""

    count: int = 4
    delta: float = 0.02
    name: ClassVar[str] = "log-spectrum"
    formula: ClassVar[str] = "½ log(σ_i² + δ² ‖ΔW‖_F² + ε²), i ≤ count"
    reference: ClassVar[str] = "the SVD baseline of Learning on LoRAs (arXiv 2410.04207)"
    sees: ClassVar[frozenset[Change]] = frozenset({"scale"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"sign", "rotate out", "rotate in"})

    def __call__(self, stack: SiteStack) -> Any:
        return log_spectrum(stack.svd.S, self.count, self.delta)


FEATURE = LogSpectrum
