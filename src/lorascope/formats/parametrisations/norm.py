"""Tuned norm layers: weight and bias of a norm, trained in full and saved as they are.

    W → weight   b → bias          ΔW = weight − W

PEFT copies the whole layer, so a layer that is no norm is saved the same way.

Source: Zhao et al., https://arxiv.org/abs/2312.11420; https://github.com/huggingface/peft,
src/peft/tuners/ln_tuning/layer.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter.widening import widened
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations.replaced import Replaced, build_replaced


class Norm(Replaced):
    """W → weight, b → bias."""

    kind: ClassVar[str] = "norm"

    def delta_bias(self, dtype: DTypeLike = np.float32, *, base: NDArray[Any] | None = None) -> NDArray[Any] | None:
        """bias − b, None where either of them is not there.

        Raises:
            AdapterError: where the two do not fit.
        """
        if base is None or "bias" not in self.stored:
            return None
        bias = self.part("bias", dtype)
        if base.shape != bias.shape:
            raise AdapterError(
                "the bias does not fit the base", key=self._key, expected=list(bias.shape), found=list(base.shape)
            )
        return bias - widened(base, f"the base bias of {self._key}", dtype)


def build_norm(parts: Parts) -> Norm:
    """The update of one site from the role weight and, where it is there, bias.

    Raises:
        AdapterError: where the weight has no axes or too many, or the bias does not fit it.
    """
    replaced = build_replaced(parts)
    if "bias" in parts:
        parts.tensor("bias", replaced.shape[0])
    return Norm(
        stored=parts.named("weight", "bias"),
        keys=parts.keys,
        shape=replaced.shape,
        dim=replaced.dim,
        layer=replaced.layer,
        kernel=replaced.kernel,
    )


PARAMETRISATION = Parametrisation(
    name="norm",
    title="tuned norm",
    formula="W → weight, b → bias",
    reference="https://arxiv.org/abs/2312.11420",
    exactness="relative to the base weight",
    build=build_norm,
    oracles=("peft",),
)
