"""LoRA-GA. Wang, Yu, Li, *LoRA-GA: Low-Rank Adaptation with Gradient Approximation*, arXiv 2407.05000.

    ΔW = s · (B · A − B₀ · A₀)        s = alpha / rank, B₀ and A₀ from the gradient G = U S Vᵀ of the loss at W

    A₀ = the first rows of Vᵀ        B₀ = out^¼ / √γ · U S of the next ``rank`` columns        γ = 16

G is the mean gradient of the adapter's own first batches. This is PEFT's default, direction ArB2r and scale "stable",
with an exact decomposition. So 2 · rank must not be above min(out, in). As in PiSSA the base stays as it is, and the
adapter that is written is relative to it: a LoRA of twice the rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lorascope.errors import ForgeError
from lorascope.forge.kind import Initial
from lorascope.forge.kinds.pissa import Pissa
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot
from lorascope.forge.space import Choice, Distribution


class LoraGa(Pissa):
    """LoRA that starts along the gradient of the weight."""

    name = "lora-ga"
    reference = "Wang et al. 2024, arXiv 2407.05000"
    formula = "ΔW = (alpha / rank) · (B · A − B₀ · A₀), B₀ and A₀ from the singular vectors of the gradient"
    needs = "gradient"
    options: ClassVar[Mapping[str, Distribution]] = {
        "gamma": Choice(values=(16.0,), about="γ: B₀ is out^¼ / √γ · U S", at_least=1e-6, at_most=1e6)
    }

    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        assert evidence is not None  # the stack gives what ``needs`` says
        (out, in_), rank = layer.shape, slot.rank
        if 2 * rank > min(out, in_):
            raise ForgeError(
                "the gradient has not so many singular vectors: A and B start from different ones",
                key=layer.site,
                expected=f"a rank of at most {min(out, in_) // 2}",
                found=rank,
            )
        U, S, Vt = torch.linalg.svd(evidence.double(), full_matrices=False)
        size = out**0.25 / math.sqrt(self.option(slot, "gamma"))
        A = Vt[:rank].to(layer.dtype)
        Bt = (size * S[rank : 2 * rank].unsqueeze(1) * U.T[rank : 2 * rank]).to(layer.dtype)
        return Initial({"A": A.clone(), "Bt": Bt.clone()}, {"A0": A, "Bt0": Bt})


KIND = LoraGa()
