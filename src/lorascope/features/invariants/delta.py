"""The direction of ΔW: a two-sided random sketch of ΔW / ‖ΔW‖_F, from the factors alone."""

from dataclasses import dataclass
from typing import Any, ClassVar

from lorascope.features.feature import Change
from lorascope.features.projection import projected
from lorascope.features.side import FLOOR
from lorascope.symmetry import SiteStack
from lorascope.symmetry.arrays import namespace, transpose


@dataclass(frozen=True)
class Delta:
    """(P B)(A Qᵀ) / √(‖ΔW‖² + ε²), [h_out · h_in] numbers per site; exact where ``size`` reaches the shape."""

    size: int = 32
    seed: int = 0
    name: ClassVar[str] = "delta"
    formula: ClassVar[str] = "P ΔW Qᵀ / √(‖ΔW‖_F² + ε²)"
    reference: ClassVar[str] = "the Dense model of Learning on LoRAs (arXiv 2410.04207), sketched"
    sees: ClassVar[frozenset[Change]] = frozenset({"sign", "rotate out", "rotate in"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"scale"})

    def __call__(self, stack: SiteStack) -> Any:
        left, right = self._sides(stack)
        sketch = left @ transpose(right)
        return namespace(sketch).reshape(sketch, (*sketch.shape[:-2], -1))

    def directions(self, stack: SiteStack) -> Any:
        """What each singular direction adds, [N, S, k, d]."""
        left, right = (transpose(side) for side in self._sides(stack))
        products = left[..., :, None] * right[..., None, :]
        return namespace(products).reshape(products, (*products.shape[:-2], -1))

    def _sides(self, stack: SiteStack) -> tuple[Any, Any]:
        """P U S / ‖ΔW‖ and Q V."""
        S = stack.svd.S
        xp = namespace(S)
        relative = S / xp.sqrt(xp.sum(S * S, axis=-1, keepdims=True) + FLOOR * FLOOR)
        left = projected(stack, "out", self.size, self.seed) * relative[..., None, :]
        return left, projected(stack, "in", self.size, self.seed)


FEATURE = Delta
