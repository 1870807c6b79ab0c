"""The column space of ΔW, where it writes: a sketch of the filtered projector U f(S) Uᵀ."""

from dataclasses import dataclass
from typing import Any, ClassVar

from lorascope.features.feature import Change
from lorascope.features.projection import projected
from lorascope.features.side import side_directions, side_sketch
from lorascope.symmetry import SiteStack


@dataclass(frozen=True)
class ColumnSpace:
    """P U f(S) Uᵀ Pᵀ with f(σ) = σ² / (σ² + δ² ‖ΔW‖²), its upper triangle: h(h+1)/2 numbers per site."""

    size: int = 32
    delta: float = 0.05
    seed: int = 0
    name: ClassVar[str] = "column-space"
    formula: ClassVar[str] = "P U f(S) Uᵀ Pᵀ, f(σ) = σ² / (σ² + δ² ‖ΔW‖_F² + ε²)"
    reference: ClassVar[str] = "lorascope; a smooth form of the projector on the column space"
    sees: ClassVar[frozenset[Change]] = frozenset({"rotate out"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"scale", "sign", "rotate in"})

    def __call__(self, stack: SiteStack) -> Any:
        return side_sketch(projected(stack, "out", self.size, self.seed), stack.svd.S, self.delta)

    def directions(self, stack: SiteStack) -> Any:
        """What each singular direction adds, [N, S, k, d]."""
        return side_directions(projected(stack, "out", self.size, self.seed), stack.svd.S, self.delta)


FEATURE = ColumnSpace
