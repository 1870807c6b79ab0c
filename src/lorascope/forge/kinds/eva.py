"""EVA. Paischer et al., *Parameter Efficient Fine-tuning via Explained Variance Adaptation*, arXiv 2410.07170.

    ΔW = (alpha / rank) · B · A        A = the leading right singular vectors of the inputs of the layer, B = 0 at first

The inputs are those of the adapter's own first batches, X [rows, in]; the vectors are the eigenvectors of XᵀX with the
largest eigenvalues. They are not centred. Every site keeps the adapter's rank: the redistribution of ranks over sites
by explained variance is not done (ρ = 1 in the paper). Trained, and in files, it is LoRA.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorascope.errors import ForgeError
from lorascope.forge.kind import Initial, Kind
from lorascope.forge.kinds.lora import Lora
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot


class Eva(Lora):
    """LoRA whose A starts at what the inputs vary in."""

    name = "eva"
    reference = "Paischer et al. 2024, arXiv 2410.07170"
    formula = "ΔW = (alpha / rank) · B · A, A from the leading right singular vectors of the inputs"
    layers = Kind.layers
    needs = "inputs"

    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        assert evidence is not None  # the stack gives what ``needs`` says
        if slot.rank > len(evidence):
            raise ForgeError(
                "the inputs have not so many dimensions",
                key=layer.site,
                expected=f"a rank of at most {len(evidence)}",
                found=slot.rank,
            )
        vectors = torch.linalg.eigh(evidence.double()).eigenvectors  # of ascending eigenvalues
        A = vectors.T.flip(0)[: slot.rank].to(layer.dtype).contiguous()
        return Initial({"A": A, "Bt": layer.zeros(slot.rank, layer.shape[0])})


KIND = Eva()
