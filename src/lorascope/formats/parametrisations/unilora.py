"""Uni-LoRA: every entry of both factors is one of the numbers of a short vector that all sites share, times a weight.

    ΔW = B · A          A = θ[i_A] ∘ s_A [r, in]          B = θ[i_B] ∘ s_B [out, r]          θ [d]

The places i are drawn over all sites of the model at once, so that only files with ``save_indices`` can be read.

Source: Li et al., https://arxiv.org/abs/2506.00799; https://github.com/huggingface/peft,
src/peft/tuners/unilora/layer.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Expanded
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts


class UniLoRA(Expanded):
    """ΔW = (θ[i_B] ∘ s_B) · (θ[i_A] ∘ s_A)."""

    kind: ClassVar[str] = "unilora"

    @property
    def rank(self) -> int:
        """r."""
        return self.dim

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        theta = self.part("theta", dtype)
        B, A = (theta[self.stored[f"indices_{half}"]] * self.part(f"scales_{half}", dtype) for half in ("B", "A"))
        return B, A


def build_unilora(parts: Parts) -> UniLoRA:
    """The update of one site from theta and, for both factors, indices and scales.

    Raises:
        AdapterError: where the shapes do not fit one another, or an index is not in the vector.
    """
    count = parts.tensor("theta", None).shape[0]
    out, dim = parts.tensor("scales_B", None, None).shape
    in_ = parts.tensor("scales_A", dim, None).shape[1]
    for half, shape in (("B", (out, dim)), ("A", (dim, in_))):
        key = parts.keys.get(f"indices_{half}", f"indices_{half}")
        indices = parts.tensors.get(f"indices_{half}")
        if indices is None or indices.shape != shape or indices.dtype.kind not in "iu":
            raise AdapterError(
                f"{key} does not hold an index for each entry of the factor",
                key=parts.site,
                expected=f"integers {list(shape)}",
                found="nothing" if indices is None else f"{indices.dtype.name} {list(indices.shape)}",
            )
        if int(indices.min()) < 0 or int(indices.max()) >= count:
            raise AdapterError(
                f"{key} points outside the shared vector",
                key=parts.site,
                expected=f"0 to {count - 1}",
                found=f"{int(indices.min())} to {int(indices.max())}",
            )
    return UniLoRA(
        stored=parts.named("indices_A", "scales_A", "indices_B", "scales_B", "theta"),
        keys=parts.keys,
        shape=(out, in_),
        dim=dim,
        is_transposed=parts.is_transposed,
    )


PARAMETRISATION = Parametrisation(
    name="unilora",
    title="Uni-LoRA",
    formula="ΔW = B · A, all entries from one shared vector",
    reference="https://arxiv.org/abs/2506.00799",
    exactness="low rank, expanded",
    build=build_unilora,
    defaults="no scale",
    oracles=("peft",),
)
