"""Where ΔW writes most: the left Gram matrix, directions weighted by their energy. The weak directions hardly count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from lorascope.features.feature import Change
from lorascope.predict.kernel import Tokens
from lorascope.predict.kernels._side import directions_of_side, shares, weighted_side


@dataclass(frozen=True)
class ColumnEnergyKernel:
    """ΔW ΔWᵀ at unit length."""

    name: ClassVar[str] = "column-energy"
    formula: ClassVar[str] = "P ΔW ΔWᵀ Pᵀ / ‖·‖"
    reference: ClassVar[str] = "lorascope; the left Gram matrix of ΔW, of unit length"
    cost: ClassVar[str] = "h² k"
    sees: ClassVar[frozenset[Change]] = frozenset({"rotate out"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"scale", "sign", "rotate in"})
    lengths: ClassVar[tuple[float, ...]] = ()
    is_rank_stable: ClassVar[bool] = True

    def __call__(self, tokens: Tokens) -> NDArray[Any]:
        return weighted_side(tokens.left, shares(tokens.S))

    def directions(self, tokens: Tokens) -> NDArray[Any]:
        """What each singular direction adds to φ, [n, k, d]."""
        return directions_of_side(tokens.left, shares(tokens.S))


KERNEL = ColumnEnergyKernel
