"""GL-net: equivariant layers, then an invariant head, then a small MLP.

    per site    x₀ = (B, A),   x_{l+1} = W_l σ_GL(x_l)        (no σ_GL before the first W)
    head        y = W″ relu(LayerNorm(W′ · flatten of all out · in_))

Source: Learning on LoRAs (arXiv 2410.04207). Its public code takes one layer by default and so has no σ_GL;
the calibration (below), the smooth gate, normalisation and dropout are ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float

from lorascope.nn.activation import Gate, GLReLU
from lorascope.nn.dropout import EquivariantDropout
from lorascope.nn.head import InvariantHead
from lorascope.nn.layer import EquivariantLayer
from lorascope.nn.linear import EquivariantLinear
from lorascope.nn.normalisation import EquivariantNorm
from lorascope.nn.values import GLFeatures
from lorascope.symmetry import FeatureType, SiteStack, norm


class StackShape(NamedTuple):
    """``sites`` sites of one shape (out, in).

    >>> import numpy as np
    >>> StackShape.of(SiteStack(("q", "v"), np.ones((1, 2, 8, 4)), np.ones((1, 2, 4, 6))))
    StackShape(sites=2, out=8, in_=6)
    """

    sites: int
    out: int
    in_: int

    @classmethod
    def of(cls, stack: SiteStack) -> "StackShape":
        """The shape of a stack from ``symmetry.stack_adapters``."""
        return cls(len(stack.names), *stack.shape)


class GLNet(torch.nn.Module):
    """A network from adapters to ``outputs`` numbers, invariant to GL(rank) at every site, for any rank.

    Args:
        shapes: the sites of the adapters, one entry per distinct shape.
        hidden: out and in channels of every equivariant layer.
        layers: equivariant linear layers, with GL-ReLU between them.
        head_hidden: width of the MLP.
        outputs: how many numbers come out.
        gate: of GL-ReLU.
        share: one set of weights for all sites of a shape.
        norm: equivariant normalisation before every GL-ReLU; the last layer keeps its magnitude.
        dropout: probability at which channels drop before each layer but the first, and invariants before
            the MLP.
        generator: for initial weights and dropout.

    >>> shapes = [StackShape(2, 8, 6), StackShape(1, 4, 8)]
    >>> net = GLNet(shapes, hidden=3, outputs=10, generator=torch.Generator())
    >>> x = [GLFeatures.from_factors(torch.ones(5, 2, 8, 4), torch.ones(5, 2, 4, 6)),
    ...      GLFeatures.from_factors(torch.ones(5, 1, 4, 2), torch.ones(5, 1, 2, 8))]
    >>> net(x).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        shapes: Sequence[StackShape],
        *,
        hidden: int = 16,
        layers: int = 1,
        head_hidden: int = 64,
        outputs: int = 1,
        gate: Gate = "hard",
        share: bool = False,
        norm: bool = False,
        dropout: float = 0.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if layers < 1 or not shapes:
            raise ValueError(f"GLNet needs at least one layer and one stack, found {layers} and {len(shapes)}")
        self.shapes = [StackShape(*shape) for shape in shapes]
        inner = FeatureType(out=hidden, in_=hidden)
        self.stacks = torch.nn.ModuleList()
        for index, shape in enumerate(self.shapes):
            self.register_buffer(f"unit_{index}", torch.ones(shape.sites))
            steps: list[EquivariantLayer] = []
            incoming = FeatureType(out=shape.out, in_=shape.in_)
            for _ in range(layers):
                if steps:
                    steps += [EquivariantNorm(inner)] if norm else []
                    steps += [GLReLU(inner, gate=gate)]
                    steps += [EquivariantDropout(inner, dropout, generator=generator)] if dropout else []
                steps.append(EquivariantLinear(incoming, inner, sites=shape.sites, share=share, generator=generator))
                incoming = inner
            head = InvariantHead(inner)
            steps.append(head)
            if dropout:
                steps.append(EquivariantDropout(head.output_type, dropout, generator=generator))
            self.stacks.append(torch.nn.Sequential(*steps))
        invariants = hidden * hidden * sum(shape.sites for shape in self.shapes)
        self.head = torch.nn.Sequential(
            _linear(invariants, head_hidden, generator),
            torch.nn.LayerNorm(head_hidden),
            torch.nn.ReLU(),
            _linear(head_hidden, outputs, generator),
        )

    def forward(self, stacks: Sequence[GLFeatures]) -> Float[torch.Tensor, "N outputs"]:
        """[N, outputs] from one value per entry of ``shapes``, N adapters each, ranks padded or not.

        Raises:
            ValueError: where the stacks are not those the network was made for.
        """
        return self.head(self.invariants(stacks))

    def invariants(self, stacks: Sequence[GLFeatures]) -> Float[torch.Tensor, "N invariants"]:
        """What the MLP sees: hidden² numbers per site, stack by stack."""
        if len(stacks) != len(self.shapes):
            raise ValueError(f"GLNet got {len(stacks)} stacks of sites (expected {len(self.shapes)})")
        parts: list[torch.Tensor] = []
        for index, (features, layers) in enumerate(zip(stacks, self.stacks, strict=True)):
            _first(layers).check(features)
            unit = self.get_buffer(f"unit_{index}")[:, None, None]
            scaled = GLFeatures(features.out / unit, features.in_ / unit, features.inv)
            parts.append(layers(scaled).inv.flatten(1))
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def calibrate(self, stacks: Sequence[GLFeatures]) -> "GLNet":
        """Set the unit of each site from (training) adapters, so that its invariants start near 1.

        unit⁴ = mean over adapters of ‖ΔW‖² / (out · in); B and A are divided by it. A scalar per site, so no
        law changes; saved with the weights. LayerNorm's ε would otherwise swallow small updates. 1 for sites
        that are zero throughout.
        """
        for index, (features, shape) in enumerate(zip(stacks, self.shapes, strict=True)):
            norms = norm(features.out, features.in_)
            unit = (norms.square().mean(0) / (shape.out * shape.in_)) ** 0.25
            unit = torch.where(unit > 0, unit, torch.ones_like(unit))
            buffer = self.get_buffer(f"unit_{index}")
            buffer.copy_(unit.to(buffer.dtype))
        return self


def _first(layers: torch.nn.Module) -> EquivariantLayer:
    """The first of a stack's layers, whose input type is that of the adapters."""
    return next(layer for layer in layers.children() if isinstance(layer, EquivariantLayer))


def _linear(incoming: int, outgoing: int, generator: torch.Generator) -> torch.nn.Linear:
    """PyTorch's default layer with uniform ±1/√incoming entries, drawn from the generator."""
    layer = torch.nn.Linear(incoming, outgoing, device="meta").to_empty(device="cpu")
    bound = max(incoming, 1) ** -0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer
