"""LoHa. Hyeon-Woo, Ye-Bin, Oh, *FedPara: Low-Rank Hadamard Product*, arXiv 2108.06098; LyCORIS, arXiv 2309.14859.

    ΔW = (alpha / rank) · (w1_a w1_b) ∘ (w2_a w2_b)        w_a [out, rank], w_b [rank, in]

The element-wise product has rank up to rank². w2_b starts at zero, the others Kaiming uniform as in PEFT, so ΔW = 0 at
step 0. A convolution is a matrix [out, channels · kernel], without Tucker cores. Where rank² is small ΔW is applied as
the pair of its rank² columns and rows, else formed.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lorascope.adapter import Layer, Update
from lorascope.forge.export import update_of
from lorascope.forge.kind import Initial, Kind, Parameters
from lorascope.forge.kinds.lora import adapted, uniform
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot


class LoHa(Kind):
    """The element-wise product of two low-rank matrices."""

    name = "loha"
    reference = "Hyeon-Woo et al. 2021, arXiv 2108.06098"
    formula = "ΔW = (alpha / rank) · (w1_a w1_b) ∘ (w2_a w2_b)"
    layers: ClassVar[frozenset[Layer]] = frozenset[Layer]({"linear", "conv1d", "conv2d"})
    is_for_transposed = False  # PEFT has none there
    files = "PEFT LOHA"

    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        (out, in_), rank = layer.shape, slot.rank
        return Initial(
            {
                "w1_a": uniform(generator, layer, out, rank, fan=rank),
                "w1_b": uniform(generator, layer, rank, in_, fan=in_),
                "w2_a": uniform(generator, layer, out, rank, fan=rank),
                "w2_b": layer.zeros(rank, in_),
            }
        )

    def forward(self, layer: SiteLayer, x: Tensor, seen: Tensor, parameters: Parameters, scale: Tensor) -> Tensor:
        a1, b1, a2, b2 = (parameters[name] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        (out, in_), rank = layer.shape, b1.shape[1]
        if rank**2 * (out + in_) < out * in_:
            A = (b1.unsqueeze(2) * b2.unsqueeze(1)).flatten(1, 2)
            Bt = (a1.mT.unsqueeze(2) * a2.mT.unsqueeze(1)).flatten(1, 2)
            return adapted(layer, x, seen, A, Bt, scale)
        y = layer.base(x)
        delta = torch.bmm(a1, b1) * torch.bmm(a2, b2)
        return y + layer.place(layer.project(seen, delta) * scale, y)

    def export(self, layer: SiteLayer, parameters: Parameters, slot: Slot) -> Update:
        rank = slot.rank
        tensors = {name: value[:, :rank] if name[-1] == "a" else value[:rank] for name, value in parameters.items()}
        return update_of(layer, "loha", tensors, scale=self.scale(slot), alpha=slot.alpha)


KIND = LoHa()
