"""HiRA: a low-rank product that scales the base weight entry by entry.

    W → W + W ∘ (B · A)          B [out, r]   A [r, in]; convolutions and embeddings in LoRA's layouts, and no scale

Source: Huang et al., https://openreview.net/forum?id=TwJrTz9cRS; https://github.com/huggingface/peft,
src/peft/tuners/hira/layer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from lorascope.adapter import InPlace, LowRank
from lorascope.adapter.rows import row_blocks
from lorascope.formats.pairs import Scale, low_rank
from lorascope.formats.parametrisation import Parametrisation, Parts


@dataclass(frozen=True, eq=False, kw_only=True)
class HiRA(InPlace):
    """W → W + W ∘ (B · A).

    Args:
        product: B · A.
    """

    kind: ClassVar[str] = "hira"
    product: LowRank

    def _move(self, weight: NDArray[Any]) -> None:
        factor = self.product.rows(weight.dtype)
        for block in row_blocks(weight.shape):
            weight[block] += weight[block] * factor(block)


def build_hira(parts: Parts) -> HiRA:
    """The update of one site from the roles A and B, or A_embedding and B_embedding.

    Raises:
        AdapterError: where the two shapes do not make a product.
    """
    is_embedding = "A_embedding" in parts or "B_embedding" in parts
    suffix = "_embedding" if is_embedding else ""
    stored = {half: parts.tensor(half + suffix) for half in ("B", "A")}
    keys = {half: parts.keys.get(half + suffix, half) for half in ("B", "A")}
    product = low_rank(
        parts.site,
        {keys[half]: tensor for half, tensor in stored.items()},
        (keys["B"], keys["A"]),
        lambda rank: Scale(1.0, None),
        is_embedding=is_embedding,
        is_transposed=parts.is_transposed,
    )
    return HiRA(
        stored=stored,
        keys=keys,
        shape=product.shape,
        dim=product.dim,
        layer=product.layer,
        kernel=product.kernel,
        is_transposed=product.is_transposed,
        product=product,
    )


PARAMETRISATION = Parametrisation(
    name="hira",
    title="HiRA",
    formula="W → W + W ∘ (B · A)",
    reference="https://openreview.net/forum?id=TwJrTz9cRS",
    exactness="relative to the base weight",
    build=build_hira,
    defaults="no scale",
    oracles=("peft",),
)
