"""The equivariant linear map: out' = W₁ out, in' = in W₂ᵀ, inv' = W₃ inv + b.

These are all the GL(rank)-equivariant linear maps between such features (Learning on LoRAs, arXiv 2410.04207,
Proposition 1, by Schur's lemma): there is no bias on out and in channels, and nothing mixes the three kinds.
The map commutes with independent (M, N) on out and in as well; only the layers that form out · in_ tie them
together.
"""

import torch
from jaxtyping import Float

from lorascope.nn.layer import EquivariantLayer
from lorascope.nn.values import GLFeatures
from lorascope.symmetry import FeatureType


class EquivariantLinear(EquivariantLayer):
    """The linear map between two feature types, separate for every site or one for all.

    Weights are normal with variance 1/channels, so that a channel keeps its mean square; b starts at 0.

    Args:
        input_type, output_type: channels of each kind.
        sites: the number S of sites.
        share: one set of weights for all sites, instead of one for each.
        generator: for the initial weights.

    Raises:
        ValueError: where the output has out (or in) channels and the input none: only zero maps there.

    >>> layer = EquivariantLinear(FeatureType(8, 6), FeatureType(3, 2), sites=2, generator=torch.Generator())
    >>> layer
    EquivariantLinear(8×out ⊕ 6×in → 3×out ⊕ 2×in, sites=2)
    >>> print(layer(GLFeatures.from_factors(torch.ones(5, 2, 8, 4), torch.ones(5, 2, 4, 6))).type)
    3×out ⊕ 2×in
    """

    def __init__(
        self,
        input_type: FeatureType,
        output_type: FeatureType,
        *,
        sites: int,
        share: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__(input_type, output_type, sites=sites)
        for kind, source, target in (
            ("out", input_type.out, output_type.out),
            ("in", input_type.in_, output_type.in_),
        ):
            if target and not source:
                raise ValueError(
                    f"only the zero map leads from {input_type} to {output_type}: no {kind} channel comes in"
                )
        self.share = share

        def weight(target: int, source: int) -> torch.nn.Parameter:
            shape = (target, source) if share else (sites, target, source)
            return torch.nn.Parameter(torch.randn(shape, generator=generator) * max(source, 1) ** -0.5)

        self.out_weight = weight(output_type.out, input_type.out)
        self.in_weight = weight(output_type.in_, input_type.in_)
        self.inv_weight = weight(output_type.inv, input_type.inv)
        self.inv_bias = torch.nn.Parameter(torch.zeros(self.inv_weight.shape[:-1]))

    def compute(self, features: GLFeatures) -> GLFeatures:
        """out' [N, S, c'_out, rank], in' [N, S, rank, c'_in], inv' [N, S, c'_inv]."""
        site = "" if self.share else "s"
        return GLFeatures(
            _mix(f"{site}dc,nscr->nsdr", self.out_weight, features.out),
            _mix(f"{site}dc,nsrc->nsrd", self.in_weight, features.in_),
            _mix(f"{site}dc,nsc->nsd", self.inv_weight, features.inv) + self.inv_bias,
        )

    def extra_repr(self) -> str:
        """The types, the sites, and whether they share weights."""
        return super().extra_repr() + (", share=True" if self.share else "")


def _mix(
    equation: str, weight: Float[torch.Tensor, "*weight"], features: Float[torch.Tensor, "*features"]
) -> Float[torch.Tensor, "*mixed"]:
    return torch.einsum(equation, weight, features)
