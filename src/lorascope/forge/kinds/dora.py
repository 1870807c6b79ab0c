"""DoRA. Liu et al., *DoRA: Weight-Decomposed Low-Rank Adaptation*, arXiv 2402.09353.

    W → m ∘ (W + s · B · A) / ‖W + s · B · A‖        norms of rows        s = alpha / rank

m starts as the row norms of W, A and B as in LoRA, so ΔW = 0 at step 0. The norm is not differentiated (section 4.3
of the paper, and PEFT). It is never taken of a weight per adapter, but of products of the size of the rank:

    ‖W_o + s B_o A‖² = ‖W_o‖² + 2 s (W Aᵀ)_o · B_o + s² B_o (A Aᵀ) B_oᵀ
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorascope.adapter import Update
from lorascope.forge.kind import Initial, Kind, Parameters
from lorascope.forge.kinds.lora import pair, random_factors
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot
from lorascope.formats.parametrisations.dora import decorated


class Dora(Kind):
    """A low-rank change of direction and a magnitude for each row."""

    name = "dora"
    reference = "Liu et al. 2024, arXiv 2402.09353"
    formula = "W → m ∘ (W + (alpha / rank) · B · A) / ‖W + (alpha / rank) · B · A‖"

    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        A, Bt = random_factors(layer, slot.rank, generator)
        return Initial({"A": A, "Bt": Bt, "m": layer.row_squares.sqrt()})

    def forward(self, layer: SiteLayer, x: Tensor, seen: Tensor, parameters: Parameters, scale: Tensor) -> Tensor:
        A, Bt, m = parameters["A"], parameters["Bt"], parameters["m"]
        y = layer.base(x)
        if seen is x:
            direct = layer.outputs(y, len(A)).to(A.dtype)
            direct = direct if layer.bias is None else direct - layer.bias
        else:  # dropout acts on the base's product too, as far as the magnitude changes it
            direct = torch.matmul(layer.rows(seen, len(A)).to(A.dtype), layer.weight.to(A.dtype).T)
        moved = direct + torch.bmm(layer.project(seen, A) * scale, Bt)
        ratio = (m / row_norms(layer, A, Bt, scale)).unsqueeze(1)
        return y + layer.place(ratio * moved - direct, y)

    def export(self, layer: SiteLayer, parameters: Parameters, slot: Slot) -> Update:
        A, Bt = parameters["A"][: slot.rank], parameters["Bt"][: slot.rank]
        inner = pair(layer, A, Bt, self.scale(slot), slot.alpha)
        return decorated(inner, parameters["m"].clone().numpy(force=True), "magnitude", layer.site)


@torch.no_grad()
def row_norms(layer: SiteLayer, A: Tensor, Bt: Tensor, scale: Tensor) -> Tensor:
    """‖W_o + scale · B_o A‖ of each adapter and row [N, out], from products of the size of the rank.

    A [N, r, in], Bᵀ [N, r, out], scale [N, 1, 1]. A row of zeros has the smallest positive norm instead of zero.
    """
    WA = torch.matmul(A, layer.weight.to(A.dtype).T)  # [N, r, out]
    AA = torch.bmm(A, A.transpose(1, 2))
    cross = (WA * Bt).sum(1)
    own = (torch.bmm(AA, Bt) * Bt).sum(1)
    factor = scale.view(-1, 1)
    squares = layer.row_squares + 2 * factor * cross + factor**2 * own
    return squares.clamp_min(torch.finfo(A.dtype).tiny).sqrt()


KIND = Dora()
