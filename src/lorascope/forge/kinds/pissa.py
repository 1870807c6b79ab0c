"""PiSSA. Meng, Wang, Zhang, *PiSSA: Principal Singular Values and Singular Vectors Adaptation*, arXiv 2404.02948.

    ΔW = s · (B · A − B₀ · A₀)        s · B₀ · A₀ = the best approximation of W of that rank        s = alpha / rank

B₀ = U √(S / s), A₀ = √(S / s) Vᵀ of the largest singular values of W; B and A start there. The paper (and PEFT) take
s · B₀ · A₀ out of the base and train s · B · A over the rest: the same function. Here the base stays as it is, since
all adapters share it, and the adapter that is written is relative to it: a LoRA of twice the rank, [B, −B₀] · [A; A₀],
as PEFT's conversion gives it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorascope.adapter import LowRank
from lorascope.forge.kind import Initial, Kind, Parameters
from lorascope.forge.kinds.lora import adapted, pair
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot


class Pissa(Kind):
    """LoRA that starts at the principal singular vectors of the weight."""

    name = "pissa"
    files = "PEFT LORA of twice the rank"
    reference = "Meng et al. 2024, arXiv 2404.02948"
    formula = "ΔW = (alpha / rank) · (B · A − B₀ · A₀), B₀ · A₀ from the largest singular values of W"

    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        A, Bt = self._start(layer, slot.rank, self.scale(slot))
        return Initial({"A": A.clone(), "Bt": Bt.clone()}, {"A0": A, "Bt0": Bt})

    def _start(self, layer: SiteLayer, rank: int, scale: float) -> tuple[Tensor, Tensor]:
        def start() -> tuple[Tensor, Tensor]:
            Ut, S, Vt = layer.singular(rank)
            root = (S / scale).sqrt().unsqueeze(1)
            return (root * Vt).to(layer.dtype), (root * Ut).to(layer.dtype)

        return layer.keep((self.name, rank, scale), start)

    def forward(self, layer: SiteLayer, x: Tensor, seen: Tensor, parameters: Parameters, scale: Tensor) -> Tensor:
        A, Bt = _relative(parameters, dim=1)
        return adapted(layer, x, seen, A, Bt, scale)

    def export(self, layer: SiteLayer, parameters: Parameters, slot: Slot) -> LowRank:
        own = {name: value[: slot.rank] for name, value in parameters.items()}
        A, Bt = _relative(own, dim=0)
        return pair(layer, A, Bt, self.scale(slot), 2 * slot.alpha)  # alpha / rank is the same at twice the rank


def _relative(parameters: Parameters, dim: int) -> tuple[Tensor, Tensor]:
    A = torch.cat([parameters["A"], parameters["A0"]], dim)
    return A, torch.cat([parameters["Bt"], -parameters["Bt0"]], dim)


KIND = Pissa()
