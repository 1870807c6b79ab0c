"""DeLoRA: directions and strength of a low-rank update are trained apart.

    ΔW = B · diag(λ / (r ‖aᵢ‖ ‖bᵢ‖)) · A · diag(w)          aᵢ rows of A [r, in], bᵢ columns of B [out, r]

λ is one number; w [in] are the column norms of the base weight, kept in the file. Norms below 10⁻⁴ count as 10⁻⁴.

Source: Bini et al., https://arxiv.org/abs/2503.18225; https://github.com/huggingface/peft,
src/peft/tuners/delora/layer.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Expanded
from lorascope.formats.parametrisation import Parametrisation, Parts

_SHORTEST = 1e-4
"""What PEFT divides by at least."""


class DeLoRA(Expanded):
    """ΔW = B · diag(λ / (r ‖aᵢ‖ ‖bᵢ‖)) · A · diag(w)."""

    kind: ClassVar[str] = "delora"

    @property
    def rank(self) -> int:
        """r."""
        return self.dim

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        B, A = self.part("B", dtype), self.part("A", dtype)
        lengths = np.maximum(np.linalg.norm(A, axis=1), _SHORTEST) * np.maximum(np.linalg.norm(B, axis=0), _SHORTEST)
        return B * (self.part("lambda", dtype) / self.dim / lengths), A * self.part("w_norm", dtype)


def build_delora(parts: Parts) -> DeLoRA:
    """The update of one site from the roles B, A, lambda and w_norm.

    Raises:
        AdapterError: where the shapes do not fit one another, or the rank is not the one stated.
    """
    rank, in_ = parts.tensor("A", None, None).shape
    out = parts.tensor("B", None, rank).shape[0]
    parts.tensor("lambda", 1)
    parts.tensor("w_norm", in_)
    return DeLoRA(
        stored=parts.named("B", "A", "lambda", "w_norm"),
        keys=parts.keys,
        shape=(out, in_),
        dim=rank,
        is_transposed=parts.is_transposed,
    )


PARAMETRISATION = Parametrisation(
    name="delora",
    title="DeLoRA",
    formula="ΔW = B · diag(λ / (r ‖aᵢ‖ ‖bᵢ‖)) · A · diag(w)",
    reference="https://arxiv.org/abs/2503.18225",
    exactness="low rank, expanded",
    build=build_delora,
    defaults="no scale; λ is in the file",
    oracles=("peft",),
)
