"""PVeRA: VeRA whose middle is drawn at random in training; what is used afterwards is its mean.

    ΔW = diag(λ_b) · B · diag(λ_d) · A          A [2r, ≥ in]   B [≥ out, r]   λ_d [2r]   λ_b [out]

A and B are random and shared by all sites, and cut to each site's size. The first r rows of A and of λ_d make the mean,
the other r the spread of the draw, which is no part of ΔW. A file that asks for the draw at inference too is refused.

Source: https://arxiv.org/abs/2512.07703; https://github.com/huggingface/peft, src/peft/tuners/pvera/layer.py.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Expanded
from lorascope.errors import AdapterError
from lorascope.formats.config_file import flag
from lorascope.formats.parametrisation import Parametrisation, Parts


class PVeRA(Expanded):
    """ΔW = diag(λ_b) · B · diag(λ_d) · A, of the first half of A and λ_d."""

    kind: ClassVar[str] = "pvera"

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
        return B, self.part("lambda_d", dtype)[: self.dim, None] * self.part("A", dtype)[: self.dim, :in_]


def build_pvera(parts: Parts) -> PVeRA:
    """The update of one site from the roles lambda_b, lambda_d, A and B.

    Raises:
        AdapterError: where the shapes do not fit one another, the projections are not in the file, or the update is
            random at inference.
    """
    if "A" not in parts or "B" not in parts:
        raise AdapterError(
            "the random projections are not in the file",
            key=parts.site,
            expected="base_model.pvera_A and base_model.pvera_B",
            hint="their sizes depend on all layers of the base model: load the adapter with PEFT on it, set "
            "save_projection to true and save again",
        )
    if flag(parts.options, "sample_at_inference"):
        raise AdapterError("the update is drawn at random each time it is used", key="sample_at_inference")
    out = parts.tensor("lambda_b", None).shape[0]
    most, dim = parts.tensor("B", None, None).shape
    parts.tensor("lambda_d", 2 * dim)
    parts.tensor("A", 2 * dim, None)
    if most < out:
        raise AdapterError("the projection B is too small", key=parts.site, expected=f"{out} rows", found=most)
    return PVeRA(
        stored=parts.named("lambda_b", "lambda_d", "A", "B"),
        keys=parts.keys,
        shape=(out, -1),
        dim=dim,
        is_transposed=parts.is_transposed,
    )


PARAMETRISATION = Parametrisation(
    name="pvera",
    title="PVeRA",
    formula="ΔW = diag(λ_b) · B · diag(λ_d) · A, the mean of a random update",
    reference="https://arxiv.org/abs/2512.07703",
    exactness="low rank, expanded",
    build=build_pvera,
    defaults="no scale",
    oracles=("peft",),
)
