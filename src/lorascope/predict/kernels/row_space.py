"""What ΔW reads: the row space, every direction that counts alike. Noise where each adapter started from its own A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from lorascope.features.feature import Change
from lorascope.predict.kernel import Tokens
from lorascope.predict.kernels._side import directions_of_side, filtered, weighted_side


@dataclass(frozen=True)
class RowSpaceKernel:
    """The smooth projector on the row space."""

    name: ClassVar[str] = "row-space"
    formula: ClassVar[str] = "Q V f(S) Vᵀ Qᵀ / ‖·‖, f(σ) = σ² / (σ² + δ² ‖ΔW‖²)"
    reference: ClassVar[str] = "lorascope; the smooth projector on the row space, of unit length"
    cost: ClassVar[str] = "h² k"
    sees: ClassVar[frozenset[Change]] = frozenset({"rotate in"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"scale", "sign", "rotate out"})
    lengths: ClassVar[tuple[float, ...]] = ()
    is_rank_stable: ClassVar[bool] = True

    def __call__(self, tokens: Tokens) -> NDArray[Any]:
        return weighted_side(tokens.right, filtered(tokens.S))

    def directions(self, tokens: Tokens) -> NDArray[Any]:
        """What each singular direction adds to φ, [n, k, d]."""
        return directions_of_side(tokens.right, filtered(tokens.S))


KERNEL = RowSpaceKernel
