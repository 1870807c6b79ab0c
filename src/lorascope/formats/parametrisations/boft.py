"""BOFT: a butterfly of block rotations of the input, then a scale for each output.

    W → s ∘ (W · Mᵀ)          M = M_{m−1} ⋯ M_0          M_i = P_i · blockdiag(R_i1, …) · P_iᵀ
    R = (I − Q)(I + Q)⁻¹,  Q the skew part of the stored block          R [m, blocks, b, b]   s [out, 1]

With one factor (m = 1, all that PEFT trains without its CUDA extension) P is the identity. With more, P_i sorts, within
each of blocks/2ⁱ groups, the even half blocks before the odd ones. A convolution is the matrix
[out, channels · kernel], and its s is [1, out].

Source: Liu et al., https://arxiv.org/abs/2311.06243; https://github.com/huggingface/peft,
src/peft/tuners/boft/layer.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Relative
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations.oft import cayley


def butterfly(count: int, groups: int, half: int) -> NDArray[np.int64]:
    """The order of ``count`` inputs in which each of ``groups`` has its even half blocks of ``half`` inputs first.

    >>> butterfly(8, 1, 2).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """
    pieces = np.arange(count).reshape(groups, -1, half)
    return np.concatenate((pieces[:, 0::2], pieces[:, 1::2]), axis=1).reshape(-1)


class BOFT(Relative):
    """W → s ∘ (W · Mᵀ)."""

    kind: ClassVar[str] = "boft"

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        stored = self.part("R", base.dtype)
        factors, blocks, size, _ = stored.shape
        skew = (stored - stored.swapaxes(2, 3)) / 2
        moved = base
        for i in range(factors):
            order = np.arange(base.shape[1], dtype=np.int64)
            if factors > 1:
                order = butterfly(base.shape[1], blocks >> i, size // 2)
            rotations = cayley(skew[i], self._key)
            placed = np.empty_like(moved)
            placed[:, order] = moved
            turned = placed.reshape(len(base), blocks, size).swapaxes(0, 1) @ rotations.swapaxes(1, 2)
            moved = turned.swapaxes(0, 1).reshape(base.shape)[:, order]
        return moved * self.part("s", base.dtype).reshape(-1, 1)


def build_boft(parts: Parts) -> BOFT:
    """The update of one site from the roles R and s.

    Raises:
        AdapterError: where the shapes do not fit one another, or make no butterfly.
    """
    factors, blocks, size, _ = parts.tensor("R", None, None, None, None).shape
    parts.tensor("R", factors, blocks, size, size)
    s = parts.tensor("s", None, None)
    if 1 not in s.shape:
        raise AdapterError("the scale of the outputs is not one column or row", key=parts.site, found=list(s.shape))
    if factors > 1 and (size % 2 or factors > 63 or blocks % (1 << (factors - 1))):
        raise AdapterError(
            "these blocks make no butterfly",
            key=parts.site,
            expected=f"blocks of even size, their number divided by 2^{factors - 1}",
            found=f"{blocks} blocks of {size}",
        )
    return BOFT(stored=parts.named("R", "s"), keys=parts.keys, shape=(s.size, blocks * size), dim=blocks)


PARAMETRISATION = Parametrisation(
    name="boft",
    title="BOFT",
    formula="W → s ∘ (W · Mᵀ), M a butterfly of block rotations",
    reference="https://arxiv.org/abs/2311.06243",
    exactness="relative to the base weight",
    build=build_boft,
    defaults="the number of factors is that of the tensor",
    oracles=("peft",),
)
