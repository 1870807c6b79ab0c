"""LoRA-XS. Bałazy et al., *LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters*, arXiv 2405.17604.

    ΔW = (alpha / rank) · B · R · A        B = U S [out, rank], A = Vᵀ [rank, in] of the largest singular values of W

B and A are frozen and only R [rank, rank] is trained, so the number of parameters does not grow with the model. R
starts at zero; the paper draws it with a deviation of 10⁻⁵, which the option ``deviation`` does. In files it is LoRA,
with R · A as one factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lorascope.adapter import LowRank
from lorascope.forge.kind import Initial, Kind, Parameters
from lorascope.forge.kinds.lora import expanded, pair
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot
from lorascope.forge.space import Choice, Distribution


class LoraXs(Kind):
    """A small square matrix between the singular vectors of the weight."""

    name = "lora-xs"
    reference = "Bałazy et al. 2024, arXiv 2405.17604"
    formula = "ΔW = (alpha / rank) · B · R · A, B and A from the largest singular values of W, frozen"
    options: ClassVar[Mapping[str, Distribution]] = {
        "deviation": Choice(values=(0.0,), about="standard deviation of R at first", at_least=0, at_most=1)
    }

    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        def frozen() -> tuple[Tensor, Tensor]:
            Ut, S, Vt = layer.singular(slot.rank)
            return Vt.to(layer.dtype), (Ut * S.unsqueeze(1)).to(layer.dtype)

        A, Bt = layer.keep((self.name, slot.rank), frozen)
        R = self.option(slot, "deviation") * torch.randn(slot.rank, slot.rank, generator=generator)
        return Initial({"R": R.to(layer.device, layer.dtype)}, {"A": A, "Bt": Bt})

    def forward(self, layer: SiteLayer, x: Tensor, seen: Tensor, parameters: Parameters, scale: Tensor) -> Tensor:
        h = layer.project(seen, parameters["A"])
        h = torch.bmm(h, parameters["R"].transpose(1, 2).to(h.dtype))
        return expanded(layer, x, h, parameters["Bt"], scale)

    def export(self, layer: SiteLayer, parameters: Parameters, slot: Slot) -> LowRank:
        A, Bt = parameters["A"][: slot.rank], parameters["Bt"][: slot.rank]
        R = parameters["R"][: slot.rank, : slot.rank]
        return pair(layer, R @ A, Bt, self.scale(slot), slot.alpha)


KIND = LoraXs()
