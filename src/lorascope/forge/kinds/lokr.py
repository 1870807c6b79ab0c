"""LoKr. Yeh et al., *Navigating Text-To-Image Customization: LyCORIS*, arXiv 2309.14859; Edalati et al., 2212.10650.

    ΔW = (alpha / rank) · (w1 ⊗ w2)        w1 [a, c];  w2 [b, d · kernel], or w2_a [b, rank] · w2_b [rank, d · kernel]

with out = a · b and in (or the channels) = c · d. The split is PEFT's: as near to ``factor`` as there is a divisor, or
to the square root where it is −1. w2 is whole where rank ≥ max(b, d) / 2, else factored. w1 starts at zero, the rest
Kaiming uniform as in PEFT, so ΔW = 0 at step 0. ΔW is not formed: w2 and then w1 act on the two axes of the inputs.

A Conv1d is refused: there PEFT puts the axes of a whole w2 together in another order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lorascope.adapter import Layer, Update
from lorascope.forge.export import update_of
from lorascope.forge.kind import Initial, Kind, Parameters
from lorascope.forge.kinds.lora import uniform
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot
from lorascope.forge.space import Choice, Distribution
from lorascope.formats.parametrisations.lokr import factorised


class LoKr(Kind):
    """The Kronecker product of two matrices, the second whole or of low rank."""

    name = "lokr"
    reference = "Yeh et al. 2023, arXiv 2309.14859"
    formula = "ΔW = (alpha / rank) · (w1 ⊗ w2), w2 whole or w2_a · w2_b"
    layers: ClassVar[frozenset[Layer]] = frozenset[Layer]({"linear", "conv2d"})
    is_for_transposed = False  # PEFT has none there
    files = "PEFT LOKR"
    common = frozenset({"factor"})
    options: ClassVar[Mapping[str, Distribution]] = {
        "factor": Choice(values=(-1,), about="PEFT's decompose_factor; -1 for the square root", at_least=-1)
    }

    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        (a, b), (c, d), _ = self._split(layer, slot)
        rank, columns = slot.rank, layer.shape[1] // c
        trained = {"w1": layer.zeros(a, c)}
        if self._is_whole(b, d, rank):
            trained["w2"] = uniform(generator, layer, b, columns, fan=columns)
        else:
            trained["w2_a"] = uniform(generator, layer, b, rank, fan=rank)
            trained["w2_b"] = uniform(generator, layer, rank, columns, fan=columns)
        return Initial(trained)

    def _split(self, layer: SiteLayer, slot: Slot) -> tuple[tuple[int, int], tuple[int, int], tuple[int, ...]]:
        factor: int = self.option(slot, "factor") or -1
        channels, *kernel = layer.kernel or (layer.shape[1],)
        return factorised(layer.shape[0], factor), factorised(channels, factor), tuple(kernel)

    def _is_whole(self, b: int, d: int, rank: int) -> bool:
        return rank >= max(b, d) / 2

    def forward(self, layer: SiteLayer, x: Tensor, seen: Tensor, parameters: Parameters, scale: Tensor) -> Tensor:
        w1, w2 = parameters["w1"], parameters.get("w2")
        if "w2_a" in parameters:  # of the adapters of a stack some may be whole and some factored
            product = torch.bmm(parameters["w2_a"], parameters["w2_b"])
            w2 = product if w2 is None else w2 + product
        assert w2 is not None  # each adapter has one or the other
        count, a, c = w1.shape
        y = layer.base(x)
        rows = layer.rows(seen, count).to(w1.dtype)
        z = torch.bmm(rows.reshape(count, -1, w2.shape[2]), w2.mT)  # [N, rows · c, b]
        z = z.view(count, -1, c, z.shape[-1])
        # the axes of w1 to the front: one product per adapter, not one per row
        z = torch.bmm(w1 * scale, z.transpose(1, 2).flatten(2)).view(count, a, -1, z.shape[-1])
        return y + layer.place(z.transpose(1, 2).flatten(2), y)

    def export(self, layer: SiteLayer, parameters: Parameters, slot: Slot) -> Update:
        (_, b), (_, d), kernel = self._split(layer, slot)
        tensors = {"w1": parameters["w1"]}
        if self._is_whole(b, d, slot.rank):
            tensors["w2"] = parameters["w2"].reshape(b, d, *kernel)
        else:
            tensors |= {"w2_a": parameters["w2_a"][:, : slot.rank], "w2_b": parameters["w2_b"][: slot.rank]}
        return update_of(layer, "lokr", tensors, scale=self.scale(slot), alpha=slot.alpha)


KIND = LoKr()
