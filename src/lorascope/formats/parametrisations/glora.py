"""GLoRA as LyCORIS has it: a low-rank change, and a low-rank change of the layer's input.

    ΔW = scale · (b1 b2 + W a1 a2)         a1 [in, dim]  a2 [dim, in]   b1 [out, dim]  b2 [dim, in · kernel]

For a convolution a1 a2 mixes the channels at each place of the kernel. Files of the first releases hold the factors the
other way round: W a2 a1 and b2 b1; the shapes tell.

Source: https://arxiv.org/abs/2306.07967; https://github.com/KohakuBlueleaf/LyCORIS, lycoris/modules/glora.py. It writes
alpha as it was given also under ``rs_lora``, where it trained with alpha/√dim: such files look like all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Layer, Relative
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations.loha import convolution_layer


@dataclass(frozen=True, eq=False, kw_only=True)
class GLoRA(Relative):
    """W → W + scale · (b1 b2 + W a1 a2).

    Args:
        is_reversed: whether it is W a2 a1 and b2 b1, as in the first releases.
    """

    kind: ClassVar[str] = "glora"
    is_reversed: bool = False

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        a1, a2, b1, b2 = (self.part(role, base.dtype) for role in ("a1", "a2", "b1", "b2"))
        channels = a1.size // self.dim
        if self.is_reversed:
            a1, a2, b1, b2 = a2, a1, b2, b1
        a1, a2 = a1.reshape(channels, self.dim), a2.reshape(self.dim, channels)
        blocks = base.reshape(base.shape[0], channels, -1)
        turned = np.einsum("oik,ij->ojk", np.einsum("oik,ij->ojk", blocks, a1), a2).reshape(base.shape)
        return base + self.scale * (b1.reshape(-1, self.dim) @ b2.reshape(self.dim, -1) + turned)


def build_glora(parts: Parts) -> GLoRA:
    """The update of one site from the roles a1, a2, b1 and b2.

    Raises:
        AdapterError: where the shapes do not fit one another in either order.
    """
    a1, a2, b1, b2 = (parts.tensor(role) for role in ("a1", "a2", "b1", "b2"))
    shapes = ", ".join(str(list(tensor.shape)) for tensor in (a1, a2, b1, b2))
    if min(tensor.ndim for tensor in (a1, a2, b1, b2)) < 2:
        raise AdapterError("a factor of GLoRA is no matrix", key=parts.site, found=shapes)
    layer: Layer = parts.layer
    kernel: tuple[int, ...] = ()
    is_reversed = not a1.shape[1] == a2.shape[0] == b1.shape[1] == b2.shape[0]
    first_a, last_a, first_b, last_b = (a2, a1, b2, b1) if is_reversed else (a1, a2, b1, b2)
    channels, dim = first_a.shape[:2]
    out, size = first_b.shape[0], last_b.shape[2:]
    fits = (
        last_a.shape[:2] == (dim, channels)
        and first_b.shape[1] == dim
        and last_b.shape[:2] == (dim, channels)
        and all(math.prod(tensor.shape[2:]) == 1 for tensor in (first_a, last_a, first_b))
    )
    if not fits:
        raise AdapterError(
            "the four factors of GLoRA do not make products of one layer",
            key=parts.site,
            expected="a1 [in, dim], a2 [dim, in], b1 [out, dim], b2 [dim, in]",
            found=shapes,
        )
    if size:
        layer, kernel = convolution_layer(size, parts), (channels, *size)
    scale = parts.scale_of(dim)
    return GLoRA(
        stored=parts.named("a1", "a2", "b1", "b2"),
        keys={role: key for role, key in parts.keys.items() if role in ("a1", "a2", "b1", "b2")},
        shape=(out, channels * math.prod(size)),
        dim=dim,
        scale=scale.scale,
        alpha=scale.alpha,
        layer=layer,
        kernel=kernel,
        is_transposed=parts.is_transposed and not kernel,
        is_reversed=is_reversed,
    )


PARAMETRISATION = Parametrisation(
    name="glora",
    title="GLoRA (LyCORIS)",
    formula="ΔW = scale · (b1 b2 + W a1 a2)",
    reference="https://arxiv.org/abs/2306.07967",
    exactness="relative to the base weight",
    build=build_glora,
    defaults="scale = alpha/dim",
    oracles=("lycoris-lora",),
)
