"""VeRA: random projections that all sites share, and two trained vectors for each site.

    ΔW = diag(λ_b) · B · diag(λ_d) · A          A [r, ≥ in]   B [≥ out, r]   λ_d [r]   λ_b [out]

A and B are as large as the largest site and cut to each site's size. A file saved without them holds the vectors
alone: the seed of the projections is known then, but not the size that they were drawn at.

Source: Kopiczko et al., https://arxiv.org/abs/2310.11454; https://github.com/huggingface/peft,
src/peft/tuners/vera/layer.py and model.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Expanded
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts


@dataclass(frozen=True, eq=False, kw_only=True)
class VeRA(Expanded):
    """ΔW = diag(λ_b) · B · diag(λ_d) · A.

    Args:
        seed: what A and B were drawn from, a fact about the file; PEFT loads adapters together only where it agrees.
    """

    kind: ClassVar[str] = "vera"
    seed: int | None = None

    @property
    def rank(self) -> int:
        """r."""
        return self.dim

    def resolved(self, base_shape: tuple[int, ...]) -> Self:
        """The same update for a base weight of that shape.

        Raises:
            AdapterError: where it has more inputs than the projection.
        """
        update = super().resolved(base_shape)
        widest = self.stored["A"].shape[1]
        if update.shape[1] > widest:
            raise AdapterError(
                "the update does not fit the base weight",
                key=self._key,
                expected=f"up to {widest} inputs",
                found=list(base_shape),
            )
        return update

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        out, in_ = self.shape
        B = self.part("lambda_b", dtype)[:, None] * self.part("B", dtype)[:out]
        return B, self.part("lambda_d", dtype)[:, None] * self.part("A", dtype)[:, :in_]


def build_vera(parts: Parts) -> VeRA:
    """The update of one site from the roles lambda_b, lambda_d, A and B.

    Raises:
        AdapterError: where the shapes do not fit one another, or the projections are not in the file.
    """
    if "A" not in parts or "B" not in parts:
        raise AdapterError(
            "the random projections are not in the file, only their seed projection_prng_key",
            key=parts.site,
            expected="base_model.vera_A and base_model.vera_B",
            hint="their sizes depend on all layers of the base model: load the adapter with PEFT on it, set "
            "save_projection to true and save again",
        )
    out = parts.tensor("lambda_b", None).shape[0]
    most, dim = parts.tensor("B", None, None).shape
    parts.tensor("lambda_d", dim)
    parts.tensor("A", dim, None)
    if most < out:
        raise AdapterError("the projection B is too small", key=parts.site, expected=f"{out} rows", found=most)
    seed = parts.options.get("projection_prng_key")
    return VeRA(
        stored=parts.named("lambda_b", "lambda_d", "A", "B"),
        keys=parts.keys,
        shape=(out, -1),
        dim=dim,
        is_transposed=parts.is_transposed,
        seed=seed if isinstance(seed, int) and not isinstance(seed, bool) else None,
    )


PARAMETRISATION = Parametrisation(
    name="vera",
    title="VeRA",
    formula="ΔW = diag(λ_b) · B · diag(λ_d) · A",
    reference="https://arxiv.org/abs/2310.11454",
    exactness="low rank, expanded",
    build=build_vera,
    defaults="no scale",
    oracles=("peft",),
)
