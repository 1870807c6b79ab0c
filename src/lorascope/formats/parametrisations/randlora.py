"""RandLoRA: a sum of random low-rank products, weighed by a diagonal on each side, of full rank together.

    ΔW = scale · Σ_n B_n · diag(λ_n) · A · diag(γ_n)          for out ≥ in, else its transpose
    A [r, 1, ≥ min]   B [≥ max, ≥ n, r]   λ [r, n]   γ [n, min]        min, max of (out, in); scale = alpha/r

A and B are random, shared by all sites, and cut to each site's size. PEFT flattens the pair (n, r) of B and the pair
(r, n) of A in these two orders and multiplies the flat axes, so column j of B meets row j of A whatever n and r they
came from; this is how the adapter was trained, and it is kept. Where the projections were not saved
(``save_projection`` false), their sizes follow from the largest layer of the model and their rounding from the machine,
so they cannot be made again from the file.

Source: Albert et al., https://arxiv.org/abs/2502.00987; https://github.com/huggingface/peft,
src/peft/tuners/randlora/layer.py.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Dense
from lorascope.adapter.widening import check_room
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts


class RandLoRA(Dense):
    """ΔW = scale · Σ_n B_n · diag(λ_n) · A · diag(γ_n)."""

    kind: ClassVar[str] = "randlora"

    @property
    def rank(self) -> int:
        """min(out, in), which the file tells, or less where there are fewer products."""
        bases, smaller = self.stored["gamma"].shape
        return int(min(bases * self.dim, smaller))

    def resolved(self, base_shape: tuple[int, ...]) -> Self:
        """The same update for a base weight of that shape.

        Raises:
            AdapterError: where the projections are too small for it, or its smaller axis is not that of γ.
        """
        update = super().resolved(base_shape)
        smaller, larger = sorted(update.shape)
        if smaller != self.stored["gamma"].shape[1] or larger > self.stored["B"].shape[0]:
            raise AdapterError(
                "the update does not fit the base weight",
                key=self._key,
                expected=f"min(out, in) = {self.stored['gamma'].shape[1]} and max(out, in) up to "
                f"{self.stored['B'].shape[0]}",
                found=list(base_shape),
            )
        return update

    def _formed(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        out, in_ = self.shape
        bases, smaller = self.stored["gamma"].shape
        B = self.part("B", dtype)[: max(out, in_), :bases].reshape(max(out, in_), -1)
        A = self.part("lambda", dtype)[:, :, None] * self.part("A", dtype)[:, :, :smaller] * self.part("gamma", dtype)
        delta = self.scale * (B @ A.reshape(-1, smaller))
        return delta if out >= in_ else delta.T


def build_randlora(parts: Parts) -> RandLoRA:
    """The update of one site from the roles lambda, gamma, A and B.

    Raises:
        AdapterError: where the shapes do not fit one another, or the projections are not in the file.
    """
    if "A" not in parts or "B" not in parts:
        raise AdapterError(
            "the random projections are not in the file",
            key=parts.site,
            expected="base_model.randlora_A and base_model.randlora_B",
            found="save_projection false" if parts.options.get("save_projection") is False else None,
            hint="their sizes depend on all layers of the base model: load the adapter with PEFT on it, set "
            "save_projection to true and save again",
        )
    dim, bases = parts.tensor("lambda", None, None).shape
    smaller = parts.tensor("gamma", bases, None).shape[1]
    A, B = parts.tensor("A", dim, 1, None), parts.tensor("B", None, None, dim)
    if A.shape[2] < smaller or B.shape[0] < smaller or B.shape[1] < bases:
        raise AdapterError(
            "the random projections are too small for this site",
            key=parts.site,
            expected=f"A [{dim}, 1, ≥ {smaller}] and B [≥ {smaller}, ≥ {bases}, {dim}]",
            found=f"{list(A.shape)} and {list(B.shape)}",
        )
    check_room(dim * bases, smaller, what="the sum of products", key=parts.site)
    scale = parts.scale_of(dim)
    return RandLoRA(
        stored=parts.named("lambda", "gamma", "A", "B"),
        keys=parts.keys,
        shape=(-1, -1),
        dim=dim,
        scale=scale.scale,
        alpha=scale.alpha,
        is_transposed=parts.is_transposed,
    )


PARAMETRISATION = Parametrisation(
    name="randlora",
    title="RandLoRA",
    formula="ΔW = scale · Σ_n B_n · diag(λ_n) · A · diag(γ_n), A and B random",
    reference="https://arxiv.org/abs/2502.00987",
    exactness="dense",
    build=build_randlora,
    defaults="scale = alpha/r; alpha 640",
    oracles=("peft",),
)
