"""rsLoRA. Kalajdzievski, *A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA*, arXiv 2312.03732.

    ΔW = (alpha / √rank) · B · A        started as LoRA is

With alpha / rank the update shrinks as the rank grows; with alpha / √rank its size stays.
"""

from __future__ import annotations

import math

from lorascope.forge.kinds.lora import Lora
from lorascope.forge.slot import Slot


class RsLora(Lora):
    """LoRA with the scale alpha / √rank."""

    name = "rslora"
    reference = "Kalajdzievski 2023, arXiv 2312.03732"
    formula = "ΔW = (alpha / √rank) · B · A"

    def scale(self, slot: Slot) -> float:
        return slot.alpha / math.sqrt(slot.rank)


KIND = RsLora()
