"""LoRA: the product of two factors, the plain low-rank update that most adapters are.

    ΔW = scale · B · A            B [out, rank]   A [rank, in]; convolutions and embeddings in their own layouts

Source: Hu et al., https://arxiv.org/abs/2106.09685; rsLoRA (scale = alpha/√rank), https://arxiv.org/abs/2312.03732.
"""

from __future__ import annotations

from lorascope.adapter import LowRank
from lorascope.formats.pairs import low_rank
from lorascope.formats.parametrisation import Parametrisation, Parts


def build_lora(parts: Parts) -> LowRank:
    """The update of one site from the roles B, A and, where it is there, bias.

    Raises:
        AdapterError: where the two shapes do not make an update.
    """
    parts.tensor("B")
    parts.tensor("A")
    return low_rank(
        parts.site,
        {parts.keys.get(role, role): tensor for role, tensor in parts.tensors.items()},
        (parts.keys.get("B", "B"), parts.keys.get("A", "A")),
        parts.scale_of,
        is_embedding=parts.layer == "embedding",
        is_transposed=parts.is_transposed,
        bias_key=parts.keys.get("bias", "bias") if "bias" in parts else None,
    )


PARAMETRISATION = Parametrisation(
    name="lora",
    title="LoRA",
    formula="ΔW = scale · B · A",
    reference="https://arxiv.org/abs/2106.09685",
    exactness="low rank",
    build=build_lora,
    defaults="scale = alpha/rank, or alpha/√rank (rsLoRA)",
    oracles=("peft", "diffusers"),
)
