"""Equivariant normalisation: divide out and in channels by an invariant of their product.

    q = (mean_ij S_ij² + ε)^¼   with S = out · in_        out' = out / q    in' = in_ / q    ⟹  mean S'² ≈ 1

The norms of out and of in_ alone would not do: they change with the gauge.
"""

import torch

from lorascope.nn.layer import EquivariantLayer
from lorascope.nn.values import GLFeatures
from lorascope.symmetry import FeatureType


class EquivariantNorm(EquivariantLayer):
    """Every site of every adapter to mean square 1 of its product; invariants to mean square 1.

    The magnitude of a site is lost, so a network that must see it should not start with this layer. A zero
    site stays zero.

    Args:
        type: the feature type, which does not change.
        eps: ε, in units of S², and for the invariants in their own units squared.

    >>> norm = EquivariantNorm(FeatureType(3, 2))
    >>> norm
    EquivariantNorm(3×out ⊕ 2×in → 3×out ⊕ 2×in)
    >>> x = GLFeatures.from_factors(torch.ones(1, 1, 3, 4), 0.1 * torch.ones(1, 1, 4, 2))
    >>> norm(x).product().unique()
    tensor([1.])
    """

    def __init__(self, type: FeatureType, *, eps: float = 1e-12) -> None:
        super().__init__(type, type)
        if bool(type.out) != bool(type.in_):
            raise ValueError(f"the norm needs both out and in channels to form their product, found {type}")
        self.eps = eps

    def compute(self, features: GLFeatures) -> GLFeatures:
        """Features of the same type, out and in_ divided by q, inv by √(mean inv² + ε)."""
        out, in_, inv = features.out, features.in_, features.inv
        if self.input_type.out:
            q = (features.product().square().mean((-2, -1), keepdim=True) + self.eps) ** 0.25
            out, in_ = out / q, in_ / q
        if self.input_type.inv:
            inv = inv * torch.rsqrt(inv.square().mean(-1, keepdim=True) + self.eps)
        return GLFeatures(out, in_, inv)
