"""BOFT as LyCORIS has it: the outputs of a layer go through several rotations of pairs of half blocks (a butterfly).

    W → rescale ∘ (P_mᵀ R_m P_m … P_1ᵀ R_1 P_1 W)     R_i block-diagonal, from oft_blocks [m, blocks, b, b] by Cayley

P_i brings rows that are 2^(i−1) · b/2 apart beside one another. alpha is a constraint, as for OFT.

Source: https://arxiv.org/abs/2311.06243; https://github.com/KohakuBlueleaf/LyCORIS, lycoris/functional/boft.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Relative
from lorascope.adapter.widening import check_room
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations.lycoris_oft import checked_rescale, constraint_of, rescaled, rotations


@dataclass(frozen=True, eq=False, kw_only=True)
class LycorisBOFT(Relative):
    """W → rescale ∘ (butterfly W).

    Args:
        constraint: the largest ‖Q‖; None where there is no limit.
    """

    kind: ClassVar[str] = "lycoris-boft"
    constraint: float | None = None

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        stages = rotations(self.part("blocks", base.dtype), self.constraint)
        _, count, size, _ = stages.shape
        weight = base
        for place, R in enumerate(stages):
            apart = 2**place * (size // 2)
            paired = np.swapaxes(weight.reshape(-1, 2, apart, weight.shape[1]), 1, 2)
            turned = np.einsum("bij,bjp->bip", R, paired.reshape(count, size, -1))
            weight = np.swapaxes(turned.reshape(-1, apart, 2, weight.shape[1]), 1, 2).reshape(base.shape)
        return rescaled(weight, self)


def build_lycoris_boft(parts: Parts) -> LycorisBOFT:
    """The update of one site from the roles blocks, rescale and alpha.

    Raises:
        AdapterError: where the shapes do not fit.
    """
    blocks = parts.tensor("blocks", None, None, None, None)
    stages, count, size, _ = blocks.shape
    parts.tensor("blocks", stages, count, size, size)
    check_room(*blocks.shape, what="the rotation", key=parts.site)
    out = count * size
    if size % 2 or stages > 64 or out % (2**stages * (size // 2)):
        raise AdapterError(
            "these blocks make no butterfly",
            key=parts.site,
            expected="blocks of even size, and a power of two of them for every stage after the first",
            found=list(blocks.shape),
        )
    checked_rescale(parts, out)
    return LycorisBOFT(
        stored=parts.named("blocks", "rescale"),
        keys=parts.keys,
        shape=(out, -1),
        dim=size,
        layer=parts.layer,
        constraint=constraint_of(parts, out),
    )


PARAMETRISATION = Parametrisation(
    name="lycoris-boft",
    title="BOFT (LyCORIS)",
    formula="W → rescale ∘ (butterfly of rotations) W",
    reference="https://arxiv.org/abs/2311.06243",
    exactness="relative to the base weight",
    build=build_lycoris_boft,
    defaults="alpha is a constraint of ‖Q‖",
    oracles=("lycoris-lora",),
)
