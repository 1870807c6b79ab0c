"""Equivariant dropout: whole channels, never single entries, which would depend on the gauge."""

import torch
from jaxtyping import Float

from lorascope.nn.layer import EquivariantLayer
from lorascope.nn.values import GLFeatures
from lorascope.symmetry import FeatureType


class EquivariantDropout(EquivariantLayer):
    """In training, each channel of each site of each adapter is zero with ``probability``, else over 1 − it.

    In evaluation the features pass unchanged.

    Args:
        type: the feature type, which does not change.
        probability: in [0, 1).
        generator: where the masks come from.

    >>> layer = EquivariantDropout(FeatureType(30, 2), 0.5, generator=torch.Generator().manual_seed(0))
    >>> layer
    EquivariantDropout(30×out ⊕ 2×in → 30×out ⊕ 2×in, probability=0.5)
    >>> layer(GLFeatures.from_factors(torch.ones(1, 1, 30, 2), torch.ones(1, 1, 2, 2))).out.unique()
    tensor([0., 2.])
    """

    def __init__(self, type: FeatureType, probability: float, *, generator: torch.Generator) -> None:
        super().__init__(type, type)
        if not 0 <= probability < 1:
            raise ValueError(f"the probability must lie in [0, 1), found {probability}")
        self.probability = probability
        self.generator = generator

    def compute(self, features: GLFeatures) -> GLFeatures:
        """Features of the same type."""
        if not self.training or self.probability == 0:
            return features
        return GLFeatures(
            features.out * self._mask(features.out[..., :1]),
            features.in_ * self._mask(features.in_[..., :1, :]),
            features.inv * self._mask(features.inv),
        )

    def _mask(self, like: Float[torch.Tensor, "*channels"]) -> Float[torch.Tensor, "*channels"]:
        drawn = torch.rand(like.shape, generator=self.generator, device=self.generator.device)
        kept = (drawn >= self.probability).to(device=like.device, dtype=like.dtype)
        return kept / (1 - self.probability)

    def extra_repr(self) -> str:
        """The type and the probability."""
        return f"{super().extra_repr()}, probability={self.probability}"
