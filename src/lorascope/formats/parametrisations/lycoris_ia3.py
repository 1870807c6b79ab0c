"""IA3 as LyCORIS has it: every output, or every input channel, is scaled.

    W → (1 + weight) ∘ W         weight [out] on the rows, or with on_input = 1 [in] on the columns

LyCORIS starts at weight 0, PEFT and T-Few at 1. The layer's bias stays. A convolution's weight is [1, n, 1, …].

Source: https://arxiv.org/abs/2205.05638; https://github.com/KohakuBlueleaf/LyCORIS, lycoris/modules/ia3.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Relative
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts


@dataclass(frozen=True, eq=False, kw_only=True)
class LycorisIA3(Relative):
    """W → (1 + weight) ∘ W.

    Args:
        is_on_input: whether the weight has one entry for each input channel.
    """

    kind: ClassVar[str] = "lycoris-ia3"
    is_on_input: bool = False

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        factor = 1 + self.part("weight", base.dtype).reshape(-1)
        if not self.is_on_input:
            return base * factor[:, None]
        if base.shape[1] % factor.size:
            raise AdapterError(
                "the update does not fit the base weight", key=self._key, expected=factor.size, found=base.shape[1]
            )
        blocks = base.reshape(base.shape[0], factor.size, -1)
        return (blocks * factor[None, :, None]).reshape(base.shape)


def build_lycoris_ia3(parts: Parts) -> LycorisIA3:
    """The update of one site from the roles weight and on_input.

    Raises:
        AdapterError: where weight is no vector, or on_input is neither 0 nor 1.
    """
    weight = parts.tensor("weight")
    if weight.size != max(weight.shape, default=0):
        raise AdapterError("the weight of an IA3 is no vector", key=parts.site, found=list(weight.shape))
    flag = parts.tensors.get("on_input", np.zeros(0))
    if flag.size != 1 or flag.dtype.kind == "c" or float(flag.reshape(()).astype(np.float64)) not in (0.0, 1.0):
        raise AdapterError("on_input is neither 0 nor 1", key=parts.site, found=f"shape {list(flag.shape)}")
    is_on_input = bool(flag.reshape(()))
    columns = -1 if weight.ndim > 1 else weight.size  # a kernel is known to the base only
    return LycorisIA3(
        stored=parts.named("weight"),
        keys=parts.keys,
        shape=(-1, columns) if is_on_input else (weight.size, -1),
        dim=weight.size,
        layer=parts.layer,
        is_on_input=is_on_input,
    )


PARAMETRISATION = Parametrisation(
    name="lycoris-ia3",
    title="IA3 (LyCORIS)",
    formula="W → (1 + weight) ∘ W",
    reference="https://arxiv.org/abs/2205.05638",
    exactness="relative to the base weight",
    build=build_lycoris_ia3,
    oracles=("lycoris-lora",),
)
