"""DEFT: a subspace of the outputs is taken out of the weight, and a trained map is put in its place.

    W → W + Q · (scale · R − Pᵀ W)          P, Q [out, r]   R [r, in]
    "relu": Q the stored matrix, P = max(Q, 0)          "qr": Q = P, an orthonormal basis of its columns

Without R (``para``, the PaRa method) the subspace is only taken out. scale = alpha/r, or 1 where alpha is not stated.

Source: https://github.com/huggingface/peft, src/peft/tuners/deft/layer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Relative
from lorascope.errors import AdapterError
from lorascope.formats.config_file import flag
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations._options import number


@dataclass(frozen=True, eq=False, kw_only=True)
class DEFT(Relative):
    """W → W + Q · (scale · R − Pᵀ W).

    Args:
        is_orthonormal: whether Q = P is an orthonormal basis.
    """

    kind: ClassVar[str] = "deft"
    is_orthonormal: bool = False

    @property
    def rank(self) -> int:
        """r."""
        return self.dim

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        stored = self.part("P", base.dtype)
        placed = np.linalg.qr(stored).Q if self.is_orthonormal else stored
        inner = -((placed if self.is_orthonormal else np.maximum(stored, 0)).T @ base)
        if "R" in self.stored:
            inner += self.scale * self.part("R", base.dtype)
        return base + placed @ inner


def build_deft(parts: Parts) -> DEFT:
    """The update of one site from the roles P and, without ``para``, R.

    Raises:
        AdapterError: where the shapes do not fit one another, or the configuration states another method.
    """
    out, dim = parts.tensor("P", None, None).shape
    method = parts.options.get("decomposition_method", "relu")
    if method not in ("relu", "qr"):
        raise AdapterError(
            "an unknown method of DEFT", key="decomposition_method", expected="relu or qr", found=ascii(method)[:80]
        )
    if dim > out:
        raise AdapterError("more directions than outputs", key=parts.site, expected=f"up to {out}", found=dim)
    in_ = -1
    if not flag(parts.options, "para"):
        in_ = parts.tensor("R", dim, None).shape[1]
    elif "R" in parts:
        raise AdapterError("a map is there although the configuration states para", key=parts.site)
    alpha = number(parts.options, "alpha", 0.0)
    return DEFT(
        stored=parts.named("P", "R"),
        keys=parts.keys,
        shape=(out, in_),
        dim=dim,
        scale=alpha / dim if alpha else 1.0,
        alpha=alpha or None,
        is_transposed=parts.is_transposed,
        is_orthonormal=method == "qr",
    )


PARAMETRISATION = Parametrisation(
    name="deft",
    title="DEFT",
    formula="W → W + Q · (scale · R − Pᵀ W)",
    reference="https://github.com/huggingface/peft",
    exactness="relative to the base weight",
    build=build_deft,
    defaults="scale 1 without alpha; method relu",
    oracles=("peft",),
)
