"""Block-diagonal LoRA: one of the two factors is block-diagonal, and only its blocks are stored.

    ΔW = scale · B · A       B stored as [out, r/n]: rows from i · out/n meet columns from i · r/n;   A [r, in] whole
                             or A stored as [r, in/n] in the same way, B whole

The file does not tell that A is in blocks: the grammar says so. LoRA on a convolution in groups is the same thing: A
[r, channels, *kernel] sees all channels, and B is in as many blocks as there are groups. That ΔW is the change of the
convolution written without groups; the base stores channels/groups channels only, so no stored weight can take it up.

Source: https://arxiv.org/abs/2510.23346; https://github.com/huggingface/peft, src/peft/tuners/lora/variants.py
(``BlockDiagonalLinear``) and src/peft/tuners/lora/layer.py (``_ConvNd``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Expanded, Layer
from lorascope.adapter.widening import check_room
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations.loha import convolution_layer

BLOCKS_OF_A = "blocks_a"
"""The option in which a grammar says that A is stored in blocks."""


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockDiagonalLoRA(Expanded):
    """ΔW = scale · B · A with B or A in blocks.

    Args:
        blocks_b: into how many blocks B is cut.
        blocks_a: and A.
    """

    kind: ClassVar[str] = "bdlora"
    blocks_b: int = 1
    blocks_a: int = 1

    @property
    def rank(self) -> int:
        """r."""
        return self.dim

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        return _whole(self.part("B", dtype), self.blocks_b), _whole(self.part("A", dtype), self.blocks_a)


def _whole(stored: NDArray[Any], blocks: int) -> NDArray[Any]:
    """The block-diagonal matrix whose blocks are the rows of ``stored``, cut into equal parts."""
    matrix = stored.reshape(stored.shape[0], -1)
    if blocks == 1:
        return matrix
    rows, columns = matrix.shape
    check_room(rows, columns * blocks, what="a factor of ΔW")
    whole = np.zeros((blocks, rows // blocks, blocks, columns), stored.dtype)
    for block in range(blocks):
        whole[block, :, block] = matrix.reshape(blocks, -1, columns)[block]
    return whole.reshape(rows, columns * blocks)


def build_bdlora(parts: Parts) -> BlockDiagonalLoRA:
    """The update of one site from the roles B and A, and the option ``blocks_a``.

    Raises:
        AdapterError: where the shapes do not fit one another.
    """
    A, B = parts.tensor("A"), parts.tensor("B")
    kernel = tuple(A.shape[1:]) if A.ndim > 2 else ()
    layer: Layer = convolution_layer(kernel[1:], parts) if kernel else parts.layer
    if A.ndim < 2 or B.ndim != A.ndim or B.size != B.shape[0] * B.shape[1]:
        raise AdapterError(
            "the two factors do not make a product",
            key=parts.site,
            expected="B [out, r/n] and A [r, in], or B [out, r] and A [r, in/n]",
            found=f"{list(B.shape)} and {list(A.shape)}",
        )
    (out, columns), rank = B.shape[:2], A.shape[0]
    blocks_a = parts.options.get(BLOCKS_OF_A, 1)
    blocks_b = rank // columns
    if blocks_b * columns != rank or out % max(blocks_b, 1) or rank % blocks_a or (kernel and blocks_a > 1):
        raise AdapterError(
            "the factors do not fall into equal blocks",
            key=parts.site,
            found=f"{list(B.shape)} and {list(A.shape)}",
        )
    bias = parts.tensor("bias", out) if "bias" in parts else None
    scale = parts.scale_of(rank)
    return BlockDiagonalLoRA(
        stored=parts.named("B", "A"),
        keys=parts.keys,
        shape=(out, blocks_a * math.prod(A.shape[1:])),
        dim=rank,
        scale=scale.scale,
        alpha=scale.alpha,
        layer=layer,
        kernel=kernel,
        is_transposed=parts.is_transposed and not kernel,
        bias=bias,
        blocks_b=blocks_b,
        blocks_a=blocks_a,
    )


PARAMETRISATION = Parametrisation(
    name="bdlora",
    title="block-diagonal LoRA",
    formula="ΔW = scale · B · A, B or A block-diagonal",
    reference="https://arxiv.org/abs/2510.23346",
    exactness="low rank, expanded",
    build=build_bdlora,
    defaults="scale = alpha/rank; a convolution in groups: B in as many blocks",
    oracles=("peft",),
)
