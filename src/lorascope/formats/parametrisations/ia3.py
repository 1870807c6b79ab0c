"""IA3: every output, or every input channel of a feed-forward layer, is scaled.

    W → l ∘ W and b → l ∘ b         l [out, 1]: rows
    W → W ∘ l, b stays              l [1, in]: columns, at the sites that ``feedforward_modules`` names

A convolution's l is [1, n, 1, …] on either axis, so there the configuration decides. LyCORIS has its own IA3, which
starts at 0 and leaves the bias alone.

Source: Liu et al., https://arxiv.org/abs/2205.05638; https://github.com/huggingface/peft, src/peft/tuners/ia3/layer.py
and model.py (``_check_target_module_feedforward``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Relative
from lorascope.adapter.widening import widened
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations._options import names
from lorascope.formats.parametrisations.loha import convolution_layer
from lorascope.formats.peft_scale import is_full_match


@dataclass(frozen=True, eq=False, kw_only=True)
class IA3(Relative):
    """W → l ∘ W, or W ∘ l.

    Args:
        axis: whether l has one entry for each output or for each input channel.
    """

    kind: ClassVar[str] = "ia3"
    axis: Literal["out", "in"] = "out"

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        gate = self.part("gate", base.dtype).reshape(-1)
        if self.axis == "out":
            return base * gate[:, None]
        out, in_ = base.shape
        channels = self.kernel[0] if self.kernel else in_
        groups = gate.size // channels
        if groups * channels != gate.size or not groups or out % groups:
            raise AdapterError(
                "the update does not fit the base weight",
                key=self._key,
                expected=f"{gate.size} input channels",
                found=list(self.base_shape),
            )
        # a convolution in groups stores the channels of one group, and each group of outputs has its own
        blocks = base.reshape(groups, out // groups, channels, -1)
        return (blocks * gate.reshape(groups, 1, channels, 1)).reshape(out, in_)

    def delta_bias(self, dtype: DTypeLike = np.float32, *, base: NDArray[Any] | None = None) -> NDArray[Any] | None:
        """(l − 1) ∘ b where l lies on the outputs and the layer has a bias, else None.

        Raises:
            AdapterError: where the bias does not fit.
        """
        if base is None or self.axis == "in":
            return None
        gate = self.part("gate", dtype).reshape(-1)
        if base.shape != gate.shape:
            raise AdapterError(
                "the bias does not fit the base", key=self._key, expected=list(gate.shape), found=list(base.shape)
            )
        return (gate - 1) * widened(base, f"the base bias of {self._key}", dtype)


def build_ia3(parts: Parts) -> IA3:
    """The update of one site from the role gate, and ``feedforward_modules`` of the configuration.

    Raises:
        AdapterError: where the gate is no vector on one axis.
    """
    gate = parts.tensor("gate")
    is_column = gate.ndim > 1 and gate.shape[1] == gate.size
    is_row = gate.ndim == 2 and gate.shape[0] == gate.size
    if not (is_column or is_row):
        raise AdapterError(
            "the gate is no vector on one axis",
            key=parts.site,
            expected="[out, 1], [1, in] or [1, channels, 1, …]",
            found=list(gate.shape),
        )
    is_ambiguous = gate.ndim > 2 or (is_column and is_row)
    is_on_input = _is_feedforward(parts) if is_ambiguous else is_column
    if gate.ndim > 2:
        layer = convolution_layer(gate.shape[2:], parts)
        shape = (-1, -1) if is_on_input else (gate.size, -1)
    else:
        layer, shape = parts.layer, (-1, gate.size) if is_on_input else (gate.size, -1)
    return IA3(
        stored=parts.named("gate"),
        keys=parts.keys,
        shape=shape,
        dim=gate.size,
        layer=layer,
        is_transposed=parts.is_transposed and gate.ndim == 2,
        axis="in" if is_on_input else "out",
    )


def _is_feedforward(parts: Parts) -> bool:
    """Whether the configuration names the site, as PEFT matches: a pattern in full, or a list of endings."""
    key = "feedforward_modules"
    pattern = parts.options.get(key)
    if isinstance(pattern, str):
        return is_full_match(parts.options, key, parts.site)
    endings = names(parts.options, key)
    if endings is None:
        raise AdapterError(
            "the configuration does not say which sites are feed-forward, so the axis of this gate is not known",
            key=parts.site,
            expected=key,
        )
    return any(parts.site.endswith(ending) for ending in endings)


PARAMETRISATION = Parametrisation(
    name="ia3",
    title="IA3",
    formula="W → l ∘ W and b → l ∘ b, or W → W ∘ l",
    reference="https://arxiv.org/abs/2205.05638",
    exactness="relative to the base weight",
    build=build_ia3,
    defaults="the axis by the shape of l; of a convolution by feedforward_modules",
    oracles=("peft",),
)
