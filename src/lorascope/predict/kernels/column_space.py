"""Where ΔW writes: the column space, every direction that counts alike. Blind to what it reads and to how far it went.

From B = 0 a LoRA grows along the output side of the gradient, so this is what tells most of the data it saw; at unit
length the value does not grow with the rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from lorascope.features.feature import Change
from lorascope.predict.kernel import Tokens
from lorascope.predict.kernels._side import directions_of_side, filtered, weighted_side


@dataclass(frozen=True)
class ColumnSpaceKernel:
    """The smooth projector on the column space."""

    name: ClassVar[str] = "column-space"
    formula: ClassVar[str] = "P U f(S) Uᵀ Pᵀ / ‖·‖, f(σ) = σ² / (σ² + δ² ‖ΔW‖²)"
    reference: ClassVar[str] = "lorascope; the smooth projector on the column space, of unit length"
    cost: ClassVar[str] = "h² k"
    sees: ClassVar[frozenset[Change]] = frozenset({"rotate out"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"scale", "sign", "rotate in"})
    lengths: ClassVar[tuple[float, ...]] = ()
    is_rank_stable: ClassVar[bool] = True

    def __call__(self, tokens: Tokens) -> NDArray[Any]:
        return weighted_side(tokens.left, filtered(tokens.S))

    def directions(self, tokens: Tokens) -> NDArray[Any]:
        """What each singular direction adds to φ, [n, k, d]."""
        return directions_of_side(tokens.left, filtered(tokens.S))


KERNEL = ColumnSpaceKernel
