"""GL-ReLU: channels are gated by invariants of the product, so the gate commutes with the group.

    S = out · in_        out'_i = g(row i of S) · out_i        in'_j = g(column j of S) · in_j

    hard    g(s) = relu(sign(Σ s))               σ_GL of the public code of Learning on LoRAs (2410.04207)
    smooth  g(s) = sigmoid(Σ s / √(Σ s² + ε))    ours: the same question asked with a gradient

The hard gate has no gradient of its own, and sign(0) = 0: it shuts every channel of a site whose ΔW is zero.
The smooth one is free of scale wherever Σ s² ≫ ε, lies between 0 and 1, is 1/2 for a zero site, and has a
gradient everywhere. (A gate free of scale down to zero could not be continuous there, hence ε.) Both
need out · in_, and so break under independent (M, N) on out and in.
"""

from typing import Literal

import torch
from jaxtyping import Float

from lorascope.nn.layer import EquivariantLayer
from lorascope.nn.values import GLFeatures
from lorascope.symmetry import FeatureType

Gate = Literal["hard", "smooth"]


def gate_of(
    sums: Float[torch.Tensor, "*channels"], squares: Float[torch.Tensor, "*channels"], gate: Gate, eps: float
) -> Float[torch.Tensor, "*channels"]:
    """The gate from Σ s and Σ s² of each channel.

    >>> sums, squares = torch.tensor([-2.0, 0.0, 2.0]), torch.tensor([4.0, 0.0, 4.0])
    >>> gate_of(sums, squares, "hard", 0.0)
    tensor([0., 0., 1.])
    >>> gate_of(sums, squares, "smooth", 1e-12)
    tensor([0.2689, 0.5000, 0.7311])
    """
    if gate == "hard":
        return torch.relu(torch.sign(sums))
    return torch.sigmoid(sums * torch.rsqrt(squares + eps))


class GLReLU(EquivariantLayer):
    """The gate on out and in channels; ReLU (hard) or x · sigmoid(x) (smooth) on invariants.

    Args:
        type: the feature type, which does not change; it needs in channels where it has out channels and
            the other way round.
        gate: ``"hard"`` or ``"smooth"``, see the formulas above.
        eps: ε of the smooth gate, in units of ΔW².

    >>> layer = GLReLU(FeatureType(3, 2), gate="smooth")
    >>> layer
    GLReLU(3×out ⊕ 2×in → 3×out ⊕ 2×in, gate=smooth)
    >>> x = GLFeatures.from_factors(torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 4, 2))
    >>> layer(x).in_.unique()
    tensor([0.5000])
    """

    def __init__(self, type: FeatureType, *, gate: Gate = "hard", eps: float = 1e-12) -> None:
        super().__init__(type, type)
        if gate not in ("hard", "smooth"):
            raise ValueError(f"gate must be 'hard' or 'smooth', found {gate!r}")
        if bool(type.out) != bool(type.in_):
            raise ValueError(f"GL-ReLU needs both out and in channels to form their product, found {type}")
        self.gate: Gate = gate
        self.eps = eps

    def compute(self, features: GLFeatures) -> GLFeatures:
        """Features of the same type, each channel times its gate."""
        product = features.product()
        squares = product * product
        rows = gate_of(product.sum(-1), squares.sum(-1), self.gate, self.eps)
        columns = gate_of(product.sum(-2), squares.sum(-2), self.gate, self.eps)
        pointwise = torch.relu if self.gate == "hard" else torch.nn.functional.silu
        return GLFeatures(
            features.out * rows[..., :, None],
            features.in_ * columns[..., None, :],
            pointwise(features.inv),
        )

    def extra_repr(self) -> str:
        """The type and the gate."""
        return f"{super().extra_repr()}, gate={self.gate}"
