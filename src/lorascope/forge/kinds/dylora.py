"""DyLoRA. Valipour et al., *DyLoRA: Parameter Efficient Tuning using Dynamic Search-Free Low-Rank Adaptation*.

arXiv 2210.07558.

    ΔW = (alpha / rank) · B · A        in each step of training (alpha / b) · B[:, :b] · A[:b], b uniform in 1 … rank

b is drawn from the adapter's own seed and the step. So the first b ranks of the trained adapter are an adapter of rank
b themselves, at the scale alpha / b. All b ranks are trained in a step (the paper's variant that trains the last of
them alone is not here). Started, and in files, it is LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorascope.forge.kind import Parameters
from lorascope.forge.kinds.lora import Lora, adapted
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot


class DyLora(Lora):
    """LoRA whose ranks are ordered: each step trains the first few of them."""

    name = "dylora"
    reference = "Valipour et al. 2022, arXiv 2210.07558"
    formula = "ΔW = (alpha / rank) · B · A; in training (alpha / b) · B[:, :b] · A[:b], b drawn for each step"

    def of_step(self, slots: Sequence[Slot], step: int) -> Parameters:
        drawn = torch.tensor([rank_of_step(slot, step) for slot in slots])
        return {"drawn": drawn, "rank": torch.tensor([slot.rank for slot in slots])}

    def forward(self, layer: SiteLayer, x: Tensor, seen: Tensor, parameters: Parameters, scale: Tensor) -> Tensor:
        A, Bt = parameters["A"], parameters["Bt"]
        if "drawn" in parameters:
            drawn, rank = (parameters[name].to(A.device).view(-1, 1, 1) for name in ("drawn", "rank"))
            is_first = torch.arange(A.shape[1], device=A.device).view(1, -1, 1) < drawn
            # both factors, so that the ranks that are left out have no gradient; the scale goes to alpha / b
            A, Bt, scale = A * is_first, Bt * is_first, scale * rank / drawn
        return adapted(layer, x, seen, A, Bt, scale)


def rank_of_step(slot: Slot, step: int) -> int:
    """The b of one step, uniform in 1 … rank."""
    return 1 + slot.seed_of("rank", step) % slot.rank


KIND = DyLora()
