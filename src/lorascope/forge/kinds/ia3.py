"""IA3. Liu et al., *Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper*, arXiv 2205.05638.

    y → l ∘ y                 l [out]: every output, the bias with it
    W x + b → W (l ∘ x) + b   l [in] (channels of a convolution), at the sites that ``feedforward`` names

l starts at one, so nothing changes at step 0. There is neither rank nor alpha. ``feedforward`` is, as PEFT's
``feedforward_modules``, a regular expression that matches whole names of sites, or a sequence of their endings.

With dropout (which PEFT has not here) the gate's change, l − 1, acts on the inputs that the adapter sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lorascope.adapter import Layer, Update
from lorascope.errors import ForgeError
from lorascope.forge.export import update_of
from lorascope.forge.kind import Evidence, Initial, Kind, Parameters
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot
from lorascope.forge.space import Distribution, Text


class IA3(Kind):
    """A gate on the outputs, or on the inputs, of a layer."""

    name = "ia3"
    reference = "Liu et al. 2022, arXiv 2205.05638"
    formula = "W → l ∘ W and b → l ∘ b, or W → W ∘ l"
    layers: ClassVar[frozenset[Layer]] = frozenset[Layer]({"linear", "conv2d", "conv3d"})
    files = "PEFT IA3"
    common = frozenset({"feedforward"})
    options: ClassVar[Mapping[str, Distribution]] = {
        "feedforward": Text(values=("",), about="pattern of the sites whose inputs are gated; none if empty")
    }

    def initialise(
        self, layers: Sequence[SiteLayer], slot: Slot, generator: torch.Generator, evidence: Evidence
    ) -> dict[str, Initial]:
        named = self.option(slot, "feedforward")
        if named and not any(is_named(layer.site, named) for layer in layers):
            raise ForgeError(
                "no site is of this name, so that no input would be gated",
                key="feedforward",
                expected="a regular expression that matches a whole name, such as .*fc1, or a sequence of endings",
                found=named,
            )
        return super().initialise(layers, slot, generator, evidence)

    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        if is_named(layer.site, self.option(slot, "feedforward")):
            return Initial({"l_in": layer.zeros(layer.kernel[0] if layer.kernel else layer.shape[1]) + 1})
        return Initial({"l_out": layer.zeros(layer.shape[0]) + 1})

    def forward(self, layer: SiteLayer, x: Tensor, seen: Tensor, parameters: Parameters, scale: Tensor) -> Tensor:
        if "l_in" in parameters:
            gate = parameters["l_in"]
            if seen is x:
                return layer.base(_gated(layer, x, gate))
            y = layer.base(_gated(layer, seen, gate - 1))
            bias = 0 if layer.bias is None else layer.place(layer.bias.expand_as(layer.outputs(y, 1)), y)
            return layer.base(x) + y - bias
        gate = parameters["l_out"]
        if seen is x:
            return _gated(layer, layer.base(x), gate)
        return layer.base(x) + _gated(layer, layer.base(seen), gate - 1)

    def export(self, layer: SiteLayer, parameters: Parameters, slot: Slot) -> Update:
        is_on_input = "l_in" in parameters
        gate = parameters["l_in" if is_on_input else "l_out"]
        ones = (1,) * (len(layer.kernel) - 1)
        gate = gate.reshape(1, -1, *ones) if is_on_input or layer.kernel else gate.unsqueeze(1)
        return update_of(
            layer, "ia3", {"gate": gate}, options={"feedforward_modules": [layer.site] if is_on_input else []}
        )

    def scale(self, slot: Slot) -> float:
        return 1.0


def is_named(site: str, named: str | Sequence[str]) -> bool:
    """Whether a pattern matches the whole name, or one of a sequence of endings is its end.

    >>> is_named("blocks.0.fc1", r".*fc\\d"), is_named("blocks.0.fc1", "fc1"), is_named("blocks.0.fc1", ["fc1"])
    (True, False, True)

    Raises:
        ForgeError: where the pattern is no regular expression.
    """
    if not isinstance(named, str):
        return any(site.endswith(ending) for ending in named)
    try:
        return re.fullmatch(named, site) is not None
    except re.error as error:
        raise ForgeError("is no regular expression", key="feedforward", found=named) from error


def _gated(layer: SiteLayer, values: Tensor, gate: Tensor) -> Tensor:
    """Inputs or outputs [N · b, …] times the gates [N, channels] of the adapters, in their own dtype."""
    of_each = values.reshape(len(gate), -1, *values.shape[1:])
    channels = (1, -1, *(1,) * (len(layer.kernel) - 1)) if layer.kernel else (*(1,) * (values.ndim - 1), -1)
    return (of_each * gate.view(len(gate), *channels)).reshape(values.shape).to(values.dtype)


KIND = IA3()
