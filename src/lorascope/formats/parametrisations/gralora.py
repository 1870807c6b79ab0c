"""GraLoRA: ΔW cut into k × k blocks, each of them an update of rank r/k of its own.

    block (q, n) of ΔW = scale · B[q, n-th part]ᵀ · A[n, q-th part]ᵀ       A [k, in/k, r]   B [k, r, out/k]

    the n-th part of r axes are those from n · r/k to (n + 1) · r/k; scale = alpha / (r + r')

The hybrid form adds a plain pair A' [r', in], B' [out, r'] under the same scale.

Source: Jung et al., https://arxiv.org/abs/2505.20355; https://github.com/huggingface/peft,
src/peft/tuners/gralora/layer.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Expanded
from lorascope.adapter.widening import check_room
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts


class GraLoRA(Expanded):
    """Blocks of rank r/k, as one product of rank k · r."""

    kind: ClassVar[str] = "gralora"

    @property
    def rank(self) -> int:
        """k · r, and that of the plain pair."""
        blocks, _, rank = self.stored["A"].shape
        return blocks * rank + (self.stored["A_general"].shape[0] if "A_general" in self.stored else 0)

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        stored_A, stored_B = self.part("A", dtype), self.part("B", dtype)
        blocks, width, rank = stored_A.shape
        part, (out, in_) = rank // blocks, self.shape
        check_room(max(out, in_), self.rank, what="a factor of ΔW", key=self._key)
        # the axes of the rank are (q, n, t): output block, input block, rank inside the block
        ups = np.zeros((blocks, out // blocks, blocks, rank), dtype)
        downs = np.zeros((blocks, blocks, part, blocks, width), dtype)
        for block in range(blocks):
            ups[block, :, block] = stored_B[block].T
            downs[:, block, :, block] = stored_A[block].reshape(width, blocks, part).transpose(1, 2, 0)
        B, A = ups.reshape(out, blocks * rank), downs.reshape(blocks * rank, in_)
        if "A_general" not in self.stored:
            return B, A
        return np.hstack((B, self.part("B_general", dtype))), np.vstack((A, self.part("A_general", dtype)))


def build_gralora(parts: Parts) -> GraLoRA:
    """The update of one site from the roles A and B and, in the hybrid form, A_general and B_general.

    Raises:
        AdapterError: where the shapes do not fit one another.
    """
    blocks, width, rank = parts.tensor("A", None, None, None).shape
    height = parts.tensor("B", blocks, rank, None).shape[2]
    if rank % blocks:
        raise AdapterError("the rank does not divide into blocks", key=parts.site, expected=f"n · {blocks}", found=rank)
    out, in_, dim = blocks * height, blocks * width, rank
    if "A_general" in parts or "B_general" in parts:
        plain = parts.tensor("A_general", None, in_).shape[0]
        parts.tensor("B_general", out, plain)
        dim += plain
    scale = parts.scale_of(dim)
    return GraLoRA(
        stored=parts.named("A", "B", "A_general", "B_general"),
        keys=parts.keys,
        shape=(out, in_),
        dim=dim,
        scale=scale.scale,
        alpha=scale.alpha,
        is_transposed=parts.is_transposed,
    )


PARAMETRISATION = Parametrisation(
    name="gralora",
    title="GraLoRA",
    formula="block (q, n) of ΔW = scale · B[q, n]ᵀ · A[n, q]ᵀ",
    reference="https://arxiv.org/abs/2505.20355",
    exactness="low rank, expanded",
    build=build_gralora,
    defaults="scale = alpha/(r + hybrid_r), alpha 64",
    oracles=("peft",),
)
