"""LoRA. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv 2106.09685.

    ΔW = (alpha / rank) · B · A        B: [out, rank] = 0 at first        A: [rank, in]

A starts uniform in ±1/√in (Kaiming with a = √5, as PEFT does), from the adapter's own ``init_seed``, so ΔW = 0 at
step 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.adapter import LowRank
from lorascope.errors import ForgeError
from lorascope.forge.kind import Kind


class Lora(Kind):
    """ΔW = (alpha / rank) · B · A at linear layers."""

    name = "lora"
    reference = "Hu et al. 2021, arXiv 2106.09685"
    formula = "ΔW = (alpha / rank) · B · A"

    def check(self, site: str, module: nn.Module) -> None:
        if not isinstance(module, nn.Linear):
            raise ForgeError(
                "this kind of adapter cannot be put on this layer",
                key=site,
                expected="torch.nn.Linear",
                found=type(module).__name__,
            )

    def initialise(self, module: nn.Linear, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
        weight = module.weight
        bound = 1 / math.sqrt(module.in_features)
        # drawn in float32 whatever the base is, so that a float64 run starts from the same A
        A = (torch.rand(rank, module.in_features, generator=generator) * 2 - 1) * bound
        return {"A": A.to(weight.dtype), "Bt": weight.new_zeros(rank, module.out_features)}

    def forward(self, x: Tensor, module: nn.Linear, parameters: Mapping[str, Tensor], scale: Tensor) -> Tensor:
        return _AdaptedLinear.apply(x, module.weight, module.bias, parameters["A"], parameters["Bt"], scale)

    def export(self, module: nn.Linear, parameters: Mapping[str, Tensor], rank: int, alpha: float) -> LowRank:
        A, Bt = parameters["A"][:rank], parameters["Bt"][:rank]
        return LowRank(
            B=Bt.T.clone(memory_format=torch.contiguous_format).numpy(force=True),
            A=A.clone(memory_format=torch.contiguous_format).numpy(force=True),  # training goes on in the original
            scale=self.scale(rank, alpha),
            alpha=alpha,
        )

    def scale(self, rank: int, alpha: float) -> float:
        return alpha / rank


class _AdaptedLinear(torch.autograd.Function):
    """y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ, the gradients of A and B, and that of x in one buffer.

    B is kept as Bᵀ [N, rank, out]: its gradient hᵀ g is then a product with few rows, which batched matrix
    multiplication does several times faster than gᵀ h with few columns.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, Bt: Tensor, scale: Tensor) -> Tensor:
        h = torch.bmm(x, A.transpose(1, 2)).mul_(scale)
        y = F.linear(x, W, b)
        y.baddbmm_(h, Bt)
        ctx.save_for_backward(x, W, A, Bt, h, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        g = gradients[0].contiguous()
        x, W, A, Bt, h, scale = ctx.saved_tensors
        gradient_Bt = torch.bmm(h.transpose(1, 2), g)
        gradient_h = torch.bmm(g, Bt.transpose(1, 2)).mul_(scale)
        gradient_A = torch.bmm(gradient_h.transpose(1, 2), x)
        gradient_x = None
        if ctx.needs_input_grad[0]:
            gradient_x = torch.matmul(g.view(-1, g.shape[-1]), W).view(x.shape).baddbmm_(gradient_h, A)
        return gradient_x, None, None, gradient_A, gradient_Bt, None


KIND = Lora()
