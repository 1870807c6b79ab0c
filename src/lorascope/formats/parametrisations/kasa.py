"""KaSA: the smallest singular values of the base weight are cut off, and an update takes their place.

    W → W − Σ σᵢ uᵢ vᵢᵀ + scale · B · diag(d) · A          the sum over the r smallest singular values of W

Source: Wang et al., https://arxiv.org/abs/2412.06071; https://github.com/huggingface/peft,
src/peft/tuners/lora/variants.py (``KasaLinearVariant``).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Relative
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts


class KaSA(Relative):
    """W → W − Σ σᵢ uᵢ vᵢᵀ + scale · B · diag(d) · A."""

    kind: ClassVar[str] = "kasa"

    @property
    def rank(self) -> int:
        """2r: what is cut off and what is added."""
        return min(2 * self.dim, *self.shape)

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        U, values, V = np.linalg.svd(base, full_matrices=False)
        kept = len(values) - self.dim
        B, A = self.part("B", base.dtype) * self.part("diag", base.dtype), self.part("A", base.dtype)
        return (U[:, :kept] * values[:kept]) @ V[:kept] + self.scale * (B @ A)


def build_kasa(parts: Parts) -> KaSA:
    """The update of one site from the roles B, A and diag.

    Raises:
        AdapterError: where the shapes do not fit one another.
    """
    rank, in_ = parts.tensor("A", None, None).shape
    out = parts.tensor("B", None, rank).shape[0]
    parts.tensor("diag", rank)
    if rank >= min(out, in_):
        raise AdapterError(
            "KaSA keeps at least one singular value of the base",
            key=parts.site,
            expected=f"a rank below {min(out, in_)}",
            found=rank,
        )
    scale = parts.scale_of(rank)
    return KaSA(
        stored=parts.named("B", "A", "diag"),
        keys=parts.keys,
        shape=(out, in_),
        dim=rank,
        scale=scale.scale,
        alpha=scale.alpha,
        bias=parts.tensor("bias", out) if "bias" in parts else None,
    )


PARAMETRISATION = Parametrisation(
    name="kasa",
    title="KaSA",
    formula="W → W − its r smallest singular components + scale · B · diag(d) · A",
    reference="https://arxiv.org/abs/2412.06071",
    exactness="relative to the base weight",
    build=build_kasa,
    defaults="scale = alpha/rank",
    oracles=("peft",),
)
