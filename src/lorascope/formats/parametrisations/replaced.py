"""Replaced weight: a tensor that is put in the place of the base weight.

    W → weight            ΔW = weight − W

Norm scales in control LoRAs and ``set_weight`` in ComfyUI's files are stored so.

Source: https://github.com/black-forest-labs/flux; https://github.com/comfyanonymous/ComfyUI, comfy/lora.py.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from numpy.typing import NDArray

from lorascope.adapter import Layer, Relative
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations.loha import convolution_layer


class Replaced(Relative):
    """W → weight."""

    kind: ClassVar[str] = "replaced"

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        return self.part("weight", base.dtype).reshape(base.shape)


def build_replaced(parts: Parts) -> Replaced:
    """The update of one site from the role weight.

    Raises:
        AdapterError: where it has no axes, or too many.
    """
    weight = parts.tensor("weight")
    if not weight.ndim:
        raise AdapterError("a weight without axes", key=parts.site)
    layer: Layer = "norm" if weight.ndim == 1 else parts.layer
    kernel: tuple[int, ...] = ()
    if weight.ndim > 2:
        layer, kernel = convolution_layer(weight.shape[2:], parts), tuple(weight.shape[1:])
    shape = (weight.shape[0], math.prod(weight.shape[1:]))
    return Replaced(
        stored=parts.named("weight"),
        keys=parts.keys,
        shape=shape,
        dim=min(shape),
        layer=layer,
        kernel=kernel,
    )


PARAMETRISATION = Parametrisation(
    name="replaced",
    title="replaced weight",
    formula="W → weight",
    reference="https://github.com/comfyanonymous/ComfyUI",
    exactness="relative to the base weight",
    build=build_replaced,
)
