"""LoRA+. Hayou, Ghosh, Yu, *LoRA+: Efficient Low Rank Adaptation of Large Models*, arXiv 2402.12354.

    ΔW = (alpha / rank) · B · A        the learning rate of B is ``ratio`` times that of A

In files it is LoRA: only training differs. The paper finds a ratio of about 16 good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lorascope.forge.kinds.lora import Lora
from lorascope.forge.slot import Slot
from lorascope.forge.space import Choice, Distribution


class LoraPlus(Lora):
    """LoRA with another learning rate for B."""

    name = "lora-plus"
    reference = "Hayou et al. 2024, arXiv 2402.12354"
    formula = "ΔW = (alpha / rank) · B · A, rate of B = ratio · rate of A"
    options: ClassVar[Mapping[str, Distribution]] = {
        "ratio": Choice(values=(16.0,), about="learning rate of B against that of A", at_least=0, at_most=1e6)
    }

    def rates(self, slot: Slot) -> Mapping[str, float]:
        return {"Bt": self.option(slot, "ratio")}


KIND = LoraPlus()
