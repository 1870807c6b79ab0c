"""LoRA. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv 2106.09685.

    ΔW = (alpha / rank) · B · A        B: [out, rank] = 0 at first        A: [rank, in]

A starts uniform in ±1/√in (Kaiming with a = √5, as PEFT does), from the adapter's own ``init_seed``, so ΔW = 0 at
step 0. In an embedding A starts at zero and B normal, as PEFT does, and ΔW is stored transposed.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lorascope.adapter import Layer, LowRank
from lorascope.forge.kind import Initial, Kind, Parameters
from lorascope.forge.layer import LinearLayer, SiteLayer
from lorascope.forge.slot import Slot


class Lora(Kind):
    """ΔW = (alpha / rank) · B · A; A and B are trained."""

    name = "lora"
    reference = "Hu et al. 2021, arXiv 2106.09685"
    formula = "ΔW = (alpha / rank) · B · A"
    layers: ClassVar[frozenset[Layer]] = frozenset[Layer]({*Kind.layers, "embedding"})

    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        A, Bt = random_factors(layer, slot.rank, generator)
        return Initial({"A": A, "Bt": Bt})

    def forward(self, layer: SiteLayer, x: Tensor, seen: Tensor, parameters: Parameters, scale: Tensor) -> Tensor:
        return adapted(layer, x, seen, parameters["A"], parameters["Bt"], scale)

    def export(self, layer: SiteLayer, parameters: Parameters, slot: Slot) -> LowRank:
        A, Bt = parameters["A"][: slot.rank], parameters["Bt"][: slot.rank]
        return pair(layer, A, Bt, self.scale(slot), slot.alpha)


def random_factors(layer: SiteLayer, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A [rank, in] and Bᵀ [rank, out] as PEFT starts them, one of them zero."""
    out, in_ = layer.shape
    if layer.layer == "embedding":
        Bt = torch.randn(rank, out, generator=generator)
        return layer.zeros(rank, in_), Bt.to(layer.device, layer.dtype)
    return uniform(generator, layer, rank, in_, fan=in_), layer.zeros(rank, out)


def adapted(layer: SiteLayer, x: Tensor, seen: Tensor, A: Tensor, Bt: Tensor, scale: Tensor) -> Tensor:
    """The base layer and scale · (seen Aᵀ) Bᵀ of each adapter: A [N, r, in], Bᵀ [N, r, out]."""
    if _is_plain(layer, x, seen, A):
        module = layer.module
        y = _AdaptedLinear.apply(layer.rows(x, len(A)), module.weight, module.bias, A, Bt, scale)
        return y.view(*x.shape[:-1], y.shape[-1])
    return expanded(layer, x, layer.project(seen, A), Bt, scale)


def expanded(layer: SiteLayer, x: Tensor, h: Tensor, Bt: Tensor, scale: Tensor) -> Tensor:
    """The base layer and scale · h Bᵀ of each adapter: h [N, rows, r], Bᵀ [N, r, out]."""
    y = layer.base(x)
    return y + layer.place(torch.bmm(h * scale.to(h.dtype), Bt.to(h.dtype)), y)


def uniform(generator: torch.Generator, layer: SiteLayer, *shape: int, fan: int) -> Tensor:
    """Uniform in ±1/√fan: Kaiming with a = √5, as PEFT draws most of what it draws.

    In float32 whatever the base is, so that a float64 run starts from the same numbers.
    """
    drawn = (torch.rand(*shape, generator=generator) * 2 - 1) * (1 / math.sqrt(fan))
    return drawn.to(layer.device, layer.dtype)


def pair(layer: SiteLayer, A: Tensor, Bt: Tensor, scale: float, alpha: float | None) -> LowRank:
    """The update of A [r, in] and Bᵀ [r, out] at a layer."""
    return LowRank(
        B=Bt.T.clone(memory_format=torch.contiguous_format).numpy(force=True),
        A=A.clone(memory_format=torch.contiguous_format).numpy(force=True),  # training goes on in the original
        scale=scale,
        layer=layer.layer,
        kernel=layer.kernel,
        is_transposed=layer.is_transposed,
        alpha=alpha,
    )


def _is_plain(layer: SiteLayer, x: Tensor, seen: Tensor, A: Tensor) -> bool:
    """Whether the products can be made in one buffer: a linear layer in one dtype, without dropout."""
    return (
        isinstance(layer, LinearLayer)
        and not layer.is_transposed
        and type(layer.module).forward is torch.nn.Linear.forward
        and seen is x
        and x.dtype == A.dtype == layer.module.weight.dtype
        and not torch.is_autocast_enabled(x.device.type)
    )


class _AdaptedLinear(torch.autograd.Function):
    """y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ, the gradients of A and B, and that of x in one buffer.

    B is kept as Bᵀ [N, rank, out] and h = x Aᵀ as its transpose: products with few rows, which batched matrix
    multiplication does twice to several times as fast as those with few columns.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, Bt: Tensor, scale: Tensor) -> Tensor:
        ht = torch.bmm(A, x.transpose(1, 2)).mul_(scale)
        y = F.linear(x, W, b)
        y.baddbmm_(ht.transpose(1, 2), Bt)
        ctx.save_for_backward(x, W, A, Bt, ht, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        g = gradients[0].contiguous()
        x, W, A, Bt, ht, scale = ctx.saved_tensors
        gradient_Bt = torch.bmm(ht, g) if ctx.needs_input_grad[4] else None
        gradient_ht = torch.bmm(Bt, g.transpose(1, 2)).mul_(scale)
        gradient_A = torch.bmm(gradient_ht, x) if ctx.needs_input_grad[3] else None
        gradient_x = None
        if ctx.needs_input_grad[0]:
            gradient_x = torch.matmul(g.view(-1, g.shape[-1]), W).view(x.shape)
            gradient_x.baddbmm_(gradient_ht.transpose(1, 2), A)
        return gradient_x, None, None, gradient_A, gradient_Bt, None


KIND = Lora()
