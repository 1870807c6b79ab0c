"""LoHa: the element-wise product of two low-rank matrices.

    ΔW = scale · (w1_a w1_b) ∘ (w2_a w2_b)            w_a [out, dim]   w_b [dim, in]

    as one product of rank dim²:  B = rows of w1_a ⊗ rows of w2_a,  A = columns of w1_b ⊗ columns of w2_b

A convolution with Tucker cores t [dim, dim, *kernel] has w_a [dim, out] and
w[o,i,k] = Σ t[p,q,k] w_a[p,o] w_b[q,i]; there A of each half is Σ_q t[p,q,k] w_b[q,i].

Source: Hyeon-Woo et al., FedPara, https://arxiv.org/abs/2108.06098; https://github.com/KohakuBlueleaf/LyCORIS,
lycoris/modules/loha.py; https://github.com/huggingface/peft, src/peft/tuners/loha/layer.py.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Expanded, Layer
from lorascope.adapter.rows import Rows
from lorascope.adapter.widening import check_room
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts


class LoHa(Expanded):
    """ΔW = scale · (w1_a w1_b) ∘ (w2_a w2_b)."""

    kind: ClassVar[str] = "loha"

    @property
    def rank(self) -> int:
        """dim²."""
        return self.dim**2

    def _half(self, half: str, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        left, right = self.part(f"w{half}_a", dtype), self.part(f"w{half}_b", dtype)
        if f"t{half}" not in self.stored:
            return left, right
        core = self.part(f"t{half}", dtype).reshape(self.dim, self.dim, -1)
        return left.T, np.einsum("pqk,qi->pik", core, right).reshape(self.dim, -1)

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        (B1, A1), (B2, A2) = self._half("1", dtype), self._half("2", dtype)
        out, in_ = self.shape
        B = (B1[:, :, None] * B2[:, None, :]).reshape(out, self.rank)
        A = (A1[:, None, :] * A2[None, :, :]).reshape(self.rank, in_)
        return B, A

    def rows(self, dtype: DTypeLike = np.float32) -> Rows:
        """What forms rows of ΔW, from both halves."""
        (B1, A1), (B2, A2) = self._half("1", np.dtype(dtype)), self._half("2", np.dtype(dtype))
        return lambda block: self.scale * (B1[block] @ A1) * (B2[block] @ A2)


def build_loha(parts: Parts) -> LoHa:
    """The update of one site.

    Raises:
        AdapterError: where the shapes do not fit one another.
    """
    has_cores = "t1" in parts or "t2" in parts
    w1_b = parts.tensor("w1_b", None, None)
    dim = w1_b.shape[0]
    scale = parts.scale_of(dim)
    layer: Layer = parts.layer
    kernel: tuple[int, ...] = ()
    if has_cores:
        w1_a = parts.tensor("w1_a", dim, None)
        out, channels = w1_a.shape[1], w1_b.shape[1]
        size = parts.tensor("t1").shape[2:]
        layer, kernel = convolution_layer(size, parts), (channels, *size)
        for role, axes in (("w2_a", (dim, out)), ("w2_b", (dim, channels)), ("t1", (dim, dim, *size))):
            parts.tensor(role, *axes)
        parts.tensor("t2", dim, dim, *size)
        check_room(dim, *kernel, what="a Tucker core")
        in_ = math.prod(kernel)
    else:
        w1_a = parts.tensor("w1_a", None, dim)
        out, in_ = w1_a.shape[0], w1_b.shape[1]
        parts.tensor("w2_a", out, dim)
        parts.tensor("w2_b", dim, in_)
    return LoHa(
        stored=parts.named("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"),
        keys=parts.keys,
        shape=(out, in_),
        dim=dim,
        scale=scale.scale,
        alpha=scale.alpha,
        layer=layer,
        kernel=kernel,
        is_transposed=parts.is_transposed and not kernel,
    )


def convolution_layer(size: tuple[int, ...], parts: Parts) -> Layer:
    """The kind of a convolution with a kernel of that many axes."""
    layers: dict[int, Layer] = {1: "conv1d", 2: "conv2d", 3: "conv3d"}
    if len(size) not in layers:
        raise AdapterError("a kernel has 1, 2 or 3 axes", key=parts.site, found=list(size))
    return layers[len(size)]


PARAMETRISATION = Parametrisation(
    name="loha",
    title="LoHa",
    formula="ΔW = scale · (w1_a w1_b) ∘ (w2_a w2_b)",
    reference="https://arxiv.org/abs/2108.06098",
    exactness="low rank, expanded",
    build=build_loha,
    defaults="scale = alpha/dim",
    oracles=("peft", "lycoris-lora"),
)
