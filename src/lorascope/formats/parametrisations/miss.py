"""MiSS, once called Bone: one block of r rows, repeated along the input.

    ΔW[o, j] = D[j mod r, o]            D [r, out]

    as one product of rank r:  B = Dᵀ,  A = the identity of size r repeated up to in columns

The variant "mini" stores m columns of D and repeats them along the output too. The variant "bat" depends on the base
weight and is ``bat``. The file tells neither in nor, for "mini", out.

Source: Kang and Yin, https://arxiv.org/abs/2409.15371; https://github.com/huggingface/peft,
src/peft/tuners/miss/layer.py (peft_type MISS) and, before it was removed, src/peft/tuners/bone/layer.py (BONE).
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Expanded, Update
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts, built


class MiSS(Expanded):
    """ΔW[o, j] = D[j mod r, o mod m], with m = out but for the variant "mini"."""

    kind: ClassVar[str] = "miss"

    @property
    def rank(self) -> int:
        """r, or m where that is less."""
        return int(min(self.stored["block"].shape))

    def resolved(self, base_shape: tuple[int, ...]) -> Self:
        """The same update for a base weight of that shape.

        Raises:
            AdapterError: where its output axis is no multiple of the stored columns.
        """
        update = super().resolved(base_shape)
        columns = self.stored["block"].shape[1]
        if update.shape[0] % columns:
            raise AdapterError(
                "the update does not fit the base weight",
                key=self._key,
                expected=f"an output axis that {columns} divides",
                found=list(base_shape),
            )
        return update

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        out, in_ = self.shape
        block = self.part("block", dtype)
        rows, columns = block.shape
        if rows <= columns:
            return np.tile(block.T, (out // columns, 1)), np.eye(rows, dtype=dtype)[:, np.arange(in_) % rows]
        return np.tile(np.eye(columns, dtype=dtype), (out // columns, 1)), block.T[:, np.arange(in_) % rows]


def build_miss(parts: Parts) -> Update:
    """The update of one site from the role block; ``init_weights`` says which variant it is.

    Raises:
        AdapterError: where the block is not that of the variant.
    """
    variant = parts.options.get("init_weights")
    if variant == "bat":
        return built("bat", parts)
    if variant not in (None, True, False, "mini"):
        raise AdapterError(
            "an unknown variant of MiSS",
            key="init_weights",
            expected='true, false, "mini" or "bat"',
            found=ascii(variant)[:80],
        )
    rows, columns = parts.tensor("block", None, None).shape
    return MiSS(
        stored=parts.named("block"),
        keys=parts.keys,
        shape=(-1 if variant == "mini" else columns, -1),
        dim=rows,
    )


PARAMETRISATION = Parametrisation(
    name="miss",
    title="MiSS (Bone)",
    formula="ΔW[o, j] = D[j mod r, o]",
    reference="https://arxiv.org/abs/2409.15371",
    exactness="low rank, expanded",
    build=build_miss,
    defaults="no scale",
    oracles=("peft",),
)
