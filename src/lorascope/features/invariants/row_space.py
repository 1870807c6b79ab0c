"""The row space of ΔW, where it reads: a sketch of the filtered projector V f(S) Vᵀ."""

from dataclasses import dataclass
from typing import Any, ClassVar

from lorascope.features.feature import Change
from lorascope.features.projection import projected
from lorascope.features.side import side_directions, side_sketch
from lorascope.symmetry import SiteStack


@dataclass(frozen=True)
class RowSpace:
    """P V f(S) Vᵀ Pᵀ with f(σ) = σ² / (σ² + δ² ‖ΔW‖²), its upper triangle: h(h+1)/2 numbers per site."""

    size: int = 32
    delta: float = 0.05
    seed: int = 0
    name: ClassVar[str] = "row-space"
    formula: ClassVar[str] = "P V f(S) Vᵀ Pᵀ, f(σ) = σ² / (σ² + δ² ‖ΔW‖_F² + ε²)"
    reference: ClassVar[str] = "lorascope; a smooth form of the projector on the row space"
    sees: ClassVar[frozenset[Change]] = frozenset({"rotate in"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"scale", "sign", "rotate out"})

    def __call__(self, stack: SiteStack) -> Any:
        return side_sketch(projected(stack, "in", self.size, self.seed), stack.svd.S, self.delta)

    def directions(self, stack: SiteStack) -> Any:
        """What each singular direction adds, [N, S, k, d]."""
        return side_directions(projected(stack, "in", self.size, self.seed), stack.svd.S, self.delta)


FEATURE = RowSpace
