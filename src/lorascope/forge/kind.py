"""``Kind``: what the forge needs to know of one way to adapt a layer, for N adapters at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from lorascope.adapter import Layer, Update
from lorascope.errors import ForgeError
from lorascope.forge.layer import SiteLayer
from lorascope.forge.slot import Slot
from lorascope.forge.space import Distribution

if TYPE_CHECKING:
    from lorascope.forge.stack import AdapterStack
    from lorascope.forge.training import Training

Parameters = Mapping[str, Tensor]
Evidence = Mapping[str, Tensor]


@dataclass(frozen=True)
class Initial:
    """The parameters of one adapter at one site before training: those that are trained, and those that stay.

    A tensor of ``fixed`` that is one object for all adapters of a stack is held once.
    """

    trained: dict[str, Tensor]
    fixed: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


class Kind(ABC):
    """One way to adapt a layer. A kind is one module in ``kinds`` with an instance named ``KIND``.

    Attributes:
        name: as in the manifest and on the command line.
        reference: the paper.
        formula: ΔW in terms of the parameters.
        layers: the layers that it can adapt.
        options: its own parameters, by name, with what they are drawn from; a single value is a default.
        common: those of the options that all adapters of a stack must share, since shapes depend on them.
        needs: what the initialisation looks at beside the weight: the gradient of the loss at W = the base
            [out, in], or the second moments of the inputs [in, in], both on the adapter's own first examples.
        is_for_transposed: whether it can adapt a linear layer whose weight is stored as [in, out].
        files: the layout of the files that are written.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    formula: ClassVar[str]
    layers: ClassVar[frozenset[Layer]] = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
    options: ClassVar[Mapping[str, Distribution]] = {}
    common: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[Literal["nothing", "gradient", "inputs"]] = "nothing"
    is_for_transposed: ClassVar[bool] = True
    files: ClassVar[str] = "PEFT LORA"

    def check(self, layer: SiteLayer) -> None:
        """Raise ``ForgeError`` where this kind cannot adapt such a layer."""
        is_turned = layer.layer == "linear" and layer.is_transposed
        if layer.layer not in self.layers or (is_turned and not self.is_for_transposed):
            raise ForgeError(
                f"the kind {self.name} cannot be put on this layer",
                key=layer.site,
                expected=", ".join(sorted(self.layers)),
                found=f"{'transposed ' * is_turned}{layer.layer}",
            )

    def check_together(self, slots: Sequence[Slot]) -> None:
        """Raise ``ForgeError`` where such adapters cannot be in one stack."""
        for name in sorted(self.common):
            found = {str(self.option(slot, name)) for slot in slots}
            if len(found) > 1:
                raise ForgeError(
                    "adapters that differ in this option cannot be trained together: their shapes differ",
                    key=name,
                    expected="one value for all",
                    found=", ".join(sorted(found)),
                )

    def option(self, slot: Slot, name: str) -> Any:
        """A parameter of this kind for one adapter, its default where the slot does not say."""
        default: Any = self.options[name]
        return slot.options.get(name, default.values[0])

    def initialise(
        self, layers: Sequence[SiteLayer], slot: Slot, generator: torch.Generator, evidence: Evidence
    ) -> dict[str, Initial]:
        """The parameters of one adapter at all its sites, before training.

        The engine stacks them over adapters. Where ranks are mixed it pads each with zeros, at the end of every
        dimension, to the largest, and sees to it that they stay zeros; a parameter that one adapter has not is
        all padding there.
        """
        return {layer.site: self.initial(layer, slot, generator, evidence.get(layer.site)) for layer in layers}

    @abstractmethod
    def initial(self, layer: SiteLayer, slot: Slot, generator: torch.Generator, evidence: Tensor | None) -> Initial:
        """The parameters of one adapter at one site."""

    @abstractmethod
    def forward(self, layer: SiteLayer, x: Tensor, seen: Tensor, parameters: Parameters, scale: Tensor) -> Tensor:
        """The adapted layer.

        Args:
            layer: the base layer.
            x: [N · b, …], its inputs.
            seen: the inputs with dropout, which the adapters see; x itself where there is none.
            parameters: name → [N, …].
            scale: [N, 1, 1].
        """

    @abstractmethod
    def export(self, layer: SiteLayer, parameters: Parameters, slot: Slot) -> Update:
        """The update of one adapter at one site, from its (padded) parameters."""

    def scale(self, slot: Slot) -> float:
        """The factor before the product, alpha / rank unless the kind has another."""
        return slot.alpha / slot.rank

    def rates(self, slot: Slot) -> Mapping[str, float]:
        """Learning rates of single parameters, as multiples of the adapter's own; 1 for those that are not named."""
        return {}

    # what follows is for kinds whose training is more than gradients

    def of_step(self, slots: Sequence[Slot], step: int) -> Parameters:
        """What is drawn anew for each step, name → [N, …]; joins the parameters of every site while training.

        A function of each slot and the step alone, so that it is the same whatever is trained beside it.
        """
        return {}

    def penalty(self, stack: AdapterStack) -> Tensor | None:
        """What is added to the loss of each adapter, [N]."""
        return None

    def state(self, stack: AdapterStack) -> dict[str, Tensor]:
        """What the kind keeps about training from step to step, name → [N, …]; at first."""
        return {}

    def after_step(
        self,
        stack: AdapterStack,
        gradients: Tensor,
        step: int,
        trainings: Sequence[Training],
        is_active: Sequence[bool],
    ) -> dict[str, Tensor]:
        """The state after a step of the optimiser; may change ``stack.values`` in place.

        Args:
            stack: the adapters; ``stack.state`` is what ``state`` gave.
            gradients: [N, P], in the order of ``stack.values``.
            step: the number of the step that was done.
            trainings: how each adapter is trained.
            is_active: whether each has taken part in the step; the others must not change.
        """
        return stack.state
