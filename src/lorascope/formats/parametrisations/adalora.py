"""AdaLoRA: LoRA as a singular value decomposition, whose smallest values are pruned in training.

    ΔW = scale · B · diag(E) · A          B [out, r]   E [r, 1]   A [r, in]

    scale = alpha / (init_r + 10⁻⁵); alpha itself counts as init_r where it is not above 0

A pruned file holds the rows that were kept, none at all at some sites, and the divisor stays the rank at the start. A
convolution is a matrix [out, channels · kernel]; only the base tells its kernel.

Source: Zhang et al., https://arxiv.org/abs/2303.10512; https://github.com/huggingface/peft,
src/peft/tuners/adalora/layer.py and model.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Expanded
from lorascope.formats.parametrisation import Parametrisation, Parts


class AdaLoRA(Expanded):
    """ΔW = scale · B · diag(E) · A."""

    kind: ClassVar[str] = "adalora"

    @property
    def rank(self) -> int:
        """The rows that pruning has left."""
        return self.dim

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.part("B", dtype), self.part("A", dtype) * self.part("E", dtype)


def build_adalora(parts: Parts) -> AdaLoRA:
    """The update of one site from the roles B, A and E.

    Raises:
        AdapterError: where the shapes do not fit one another.
    """
    A = parts.tensors.get("A")
    if A is not None and A.ndim == 2 and A.shape[0] == 0 < A.shape[1]:
        rank, in_ = A.shape
        out = parts.tensors["B"].shape[0] if "B" in parts else 0
        is_pruned = out > 0 and [parts.tensors[role].shape for role in ("B", "E") if role in parts] == [
            (out, 0),
            (0, 1),
        ]
    else:
        rank, in_ = parts.tensor("A", None, None).shape
        out, is_pruned = 0, False
    if not is_pruned:
        out = parts.tensor("B", None, rank).shape[0]
        parts.tensor("E", rank, 1)
    scale = parts.scale_of(rank)
    return AdaLoRA(
        stored=parts.named("B", "A", "E"),
        keys=parts.keys,
        shape=(out, in_),
        dim=rank,
        scale=scale.scale,
        alpha=scale.alpha,
        layer=parts.layer,
        is_transposed=parts.is_transposed,
    )


PARAMETRISATION = Parametrisation(
    name="adalora",
    title="AdaLoRA",
    formula="ΔW = scale · B · diag(E) · A",
    reference="https://arxiv.org/abs/2303.10512",
    exactness="low rank, expanded",
    build=build_adalora,
    defaults="scale = alpha/(init_r + 1e-5), also after pruning",
    oracles=("peft",),
)
