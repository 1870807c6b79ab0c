"""LoRA-FA, also FFA-LoRA: A stays as it was drawn. Zhang et al., arXiv 2308.03303; Sun et al., arXiv 2403.12313.

    ΔW = (alpha / rank) · B · A        B is trained, A is frozen

Half the parameters, no activations kept for A; and the sum of several such adapters of one A is one again. In files it
is LoRA.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorascope.forge.kind import Initial, Kind
from lorascope.forge.kinds.lora import Lora, random_factors
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot


class LoraFa(Lora):
    """LoRA whose A is frozen."""

    name = "lora-fa"
    reference = "Zhang et al. 2023, arXiv 2308.03303; Sun et al. 2024, arXiv 2403.12313"
    formula = "ΔW = (alpha / rank) · B · A, A frozen"
    layers = Kind.layers  # in an embedding A starts at zero, and frozen there it would do nothing

    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        A, Bt = random_factors(layer, slot.rank, generator)
        return Initial({"Bt": Bt}, {"A": A})


KIND = LoraFa()
