"""The bilinear invariant head: S = out · in_, all c_out · c_in entries of it at each site.

On factors of full rank the products B · A of all sites separate the orbits of GL (Learning on LoRAs, arXiv
2410.04207, Lemma 3): a head on the factors themselves would lose nothing that invariant functions use.
What a network loses, it loses in layers narrower than B and A.
"""

import torch

from lorascope.nn.layer import EquivariantLayer
from lorascope.nn.values import GLFeatures
from lorascope.symmetry import FeatureType


class InvariantHead(EquivariantLayer):
    """c_out×out ⊕ c_in×in ⊕ c_inv×inv → (c_out·c_in + c_inv)×inv.

    The entries of S row by row, then the invariants that came in.

    >>> head = InvariantHead(FeatureType(3, 2, 1))
    >>> head
    InvariantHead(3×out ⊕ 2×in ⊕ 1×inv → 7×inv)
    >>> x = GLFeatures(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 4, 2), torch.zeros(1, 1, 1))
    >>> head(x).inv
    tensor([[[4., 4., 4., 4., 4., 4., 0.]]])
    """

    def __init__(self, type: FeatureType) -> None:
        super().__init__(type, FeatureType(inv=type.out * type.in_ + type.inv))

    def compute(self, features: GLFeatures) -> GLFeatures:
        """inv' [N, S, c_out·c_in + c_inv]."""
        inv = torch.cat([features.product().flatten(2), features.inv], dim=-1)
        return GLFeatures(features.out[:, :, :0], features.in_[..., :0], inv)
