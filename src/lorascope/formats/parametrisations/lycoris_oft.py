"""OFT as LyCORIS and kohya's scripts have it: the outputs of a layer are rotated in blocks.

    W → rescale ∘ (Rᵀ W) in blocks of rows      R = (I + Q)(I − Q)⁻¹      Q = P − Pᵀ, P = oft_blocks [blocks, b, b]

alpha is no alpha of LoRA but a constraint: with c = alpha · out, Q is scaled to ‖Q‖ = c where ‖Q‖ > c (the norm is that
of all blocks together). LyCORIS takes alpha 0 for "no constraint"; kohya's scripts take it for Q = 0.

Source: https://arxiv.org/abs/2306.07280; https://github.com/KohakuBlueleaf/LyCORIS, lycoris/modules/diag_oft.py;
https://github.com/kohya-ss/sd-scripts, networks/oft.py.
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
from lorascope.formats.scalars import stated_alpha


@dataclass(frozen=True, eq=False, kw_only=True)
class LycorisOFT(Relative):
    """W → rescale ∘ (Rᵀ W).

    Args:
        constraint: the largest ‖Q‖; None where there is no limit.
    """

    kind: ClassVar[str] = "lycoris-oft"
    constraint: float | None = None

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        R = rotations(self.part("blocks", base.dtype), self.constraint)
        rows = base.reshape(R.shape[0], R.shape[1], -1)
        return rescaled(np.einsum("knm,knp->kmp", R, rows).reshape(base.shape), self)


def rotations(blocks: NDArray[Any], constraint: float | None) -> NDArray[Any]:
    """R = (I + Q)(I − Q)⁻¹ of every block [..., b, b] (Cayley), after the constraint."""
    skew = blocks - np.swapaxes(blocks, -1, -2)
    norm = float(np.linalg.norm(skew)) + 1e-8
    is_bound = constraint is not None and norm > constraint
    Q = skew * (max(constraint or 0.0, 1e-8) / norm) if is_bound else skew
    identity = np.eye(Q.shape[-1], dtype=Q.dtype)
    return (identity + Q) @ np.linalg.inv(identity - Q)  # I − Q has an inverse: the eigenvalues of Q are imaginary


def rescaled(weight: NDArray[Any], update: Relative) -> NDArray[Any]:
    """The weight [out, in] times the rescale of each row, where there is one."""
    if "rescale" not in update.stored:
        return weight
    return weight * update.part("rescale", weight.dtype).reshape(-1, 1)


def constraint_of(parts: Parts, out: int) -> float | None:
    """alpha · out; None where there is no limit."""
    alpha = stated_alpha(parts.tensors["alpha"], parts.keys.get("alpha", "alpha")) if "alpha" in parts else None
    if alpha is None:
        return 0.0 if parts.options.get("is_kohya") and "alpha" in parts else None
    return None if alpha < 0 else alpha * out


def checked_rescale(parts: Parts, out: int) -> None:
    """Refuse a rescale that has not one value for each row."""
    if "rescale" in parts and parts.tensor("rescale").size != out:
        raise AdapterError(
            "rescale does not fit the blocks", key=parts.site, expected=out, found=list(parts.tensor("rescale").shape)
        )


def build_lycoris_oft(parts: Parts) -> LycorisOFT:
    """The update of one site from the roles blocks, rescale and alpha.

    Raises:
        AdapterError: where the shapes do not fit.
    """
    blocks = parts.tensor("blocks", None, None, None)
    parts.tensor("blocks", None, blocks.shape[1], blocks.shape[1])
    check_room(*blocks.shape, what="the rotation", key=parts.site)
    out = blocks.shape[0] * blocks.shape[1]
    checked_rescale(parts, out)
    return LycorisOFT(
        stored=parts.named("blocks", "rescale"),
        keys=parts.keys,
        shape=(out, -1),
        dim=blocks.shape[0],
        layer=parts.layer,
        constraint=constraint_of(parts, out),
    )


PARAMETRISATION = Parametrisation(
    name="lycoris-oft",
    title="OFT (LyCORIS, kohya)",
    formula="W → rescale ∘ (Rᵀ W), R = (I + Q)(I − Q)⁻¹",
    reference="https://arxiv.org/abs/2306.07280",
    exactness="relative to the base weight",
    build=build_lycoris_oft,
    defaults="alpha is a constraint of ‖Q‖",
    oracles=("lycoris-lora",),
)
