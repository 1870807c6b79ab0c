"""MELoRA. Ren et al., *MELoRA: Mini-Ensemble Low-Rank Adapters*, arXiv 2402.17263.

    ΔW = (alpha / rank) · blockdiag(B_1 · A_1, …, B_g · A_g)        B_i [out / g, rank], A_i [rank, in / g]

``groups`` small adapters side by side: the rank is g · rank with the parameters of one. Each A_i starts as LoRA's A of
its size, B_i at zero. g must divide the inputs and the outputs of every site; a convolution's inputs are its channels
and kernel in one axis. In files it is LoRA of rank g · rank, with zeros off the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lorascope.adapter import LowRank
from lorascope.errors import ForgeError
from lorascope.forge.kind import Initial, Kind, Parameters
from lorascope.forge.kinds.lora import pair, uniform
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot
from lorascope.forge.space import Choice, Distribution


class MeLora(Kind):
    """Small LoRAs on the blocks of the diagonal."""

    name = "melora"
    reference = "Ren et al. 2024, arXiv 2402.17263"
    formula = "ΔW = (alpha / rank) · blockdiag(B_1 · A_1, …, B_g · A_g)"
    files = "PEFT LORA of g times the rank"
    common = frozenset({"groups"})
    options: ClassVar[Mapping[str, Distribution]] = {
        "groups": Choice(values=(2,), about="small adapters on the diagonal", at_least=1, at_most=10**6)
    }

    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        groups: int = self.option(slot, "groups")
        out, in_ = layer.shape
        if out % groups or in_ % groups:
            raise ForgeError(
                "the layer cannot be divided into so many groups",
                key=layer.site,
                expected=f"a divisor of {out} outputs and {in_} inputs",
                found=f"groups {groups}",
            )
        each = in_ // groups
        A = uniform(generator, layer, groups, slot.rank, each, fan=each)
        return Initial({"A": A, "Bt": layer.zeros(groups, slot.rank, out // groups)})

    def forward(self, layer: SiteLayer, x: Tensor, seen: Tensor, parameters: Parameters, scale: Tensor) -> Tensor:
        A, Bt = parameters["A"], parameters["Bt"]  # [N, g, rank, in / g], [N, g, rank, out / g]
        y = layer.base(x)
        rows = layer.rows(seen, len(A)).to(A.dtype).unflatten(2, A.shape[1::2])  # [N, rows, g, in / g]
        h = torch.matmul(rows.transpose(1, 2), A.mT) * scale.unsqueeze(3)
        return y + layer.place(torch.matmul(h, Bt).transpose(1, 2).flatten(2), y)

    def export(self, layer: SiteLayer, parameters: Parameters, slot: Slot) -> LowRank:
        blocks = {name: torch.block_diag(*value[:, : slot.rank]) for name, value in parameters.items()}
        alpha = slot.alpha * len(parameters["A"])  # alpha / rank is the same at g times the rank
        return pair(layer, blocks["A"], blocks["Bt"], self.scale(slot), alpha)


KIND = MeLora()
