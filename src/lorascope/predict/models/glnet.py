"""GL-net: the equivariant network of Learning on LoRAs, on balanced factors.

Balancing is a change of gauge: it leaves what an invariant network computes alone, and makes its rounding independent
of the condition of the gauge that the file happens to be in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.predict.explanation import Contributions
from lorascope.predict.model import (
    GATES,
    CalibratedOn,
    FittedModel,
    Inputs,
    Invariance,
    RankPolicy,
    Sample,
    Split,
    Structure,
    check_options,
    ordered_sites,
    stacks_of,
)
from lorascope.predict.models._balanced import balanced_inputs
from lorascope.predict.targets import Target

if TYPE_CHECKING:
    import torch

    from lorascope.predict.neural import FittedNetwork


@dataclass(frozen=True)
class GLNetModel:
    """Options: the network's (``hidden``, ``layers``, ``gate``, …) and its training's.

    GL-ReLU stands between layers: ``gate`` (hard, as in the paper, or smooth) and ``norm`` act where ``layers`` > 1.
    """

    hidden: int = 32
    layers: int = 1
    gate: GATES = "hard"
    head_hidden: int = 64
    share: bool = False
    norm: bool = False
    dropout: float = 0.5
    epochs: int = 60
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    name: ClassVar[str] = "glnet"
    formula: ClassVar[str] = "MLP(flatten (W₁ B)(A W₂ᵀ)), with GL-ReLU and more equivariant maps between if layers > 1"
    reference: ClassVar[str] = "Learning on LoRAs (arXiv 2410.04207)"
    invariance: ClassVar[Invariance] = "GL(r)"
    rank_policy: ClassVar[RankPolicy] = "any"
    calibrated_on: ClassVar[CalibratedOn] = "validation"

    def __post_init__(self) -> None:
        check_options(self)

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """``B0`` [n, S, out, k] and ``A0`` [n, S, k, in] for the first shape, and so on; k the largest rank."""
        return balanced_inputs(samples, structure, advance)

    def _network(self, inputs: Mapping[str, Any], outputs: int, generator: torch.Generator) -> torch.nn.Module:
        from lorascope.predict.models._glnet_network import network

        return network(self, inputs, outputs, generator)

    def fit(self, train: Split, validation: Split, target: Target, structure: Structure, *, seed: int) -> FittedModel:
        """By gradient descent, stopped on validation loss."""
        from lorascope.predict.neural import fit_network
        from lorascope.predict.training import Schedule

        return fit_network(
            lambda generator, batch: self._network(batch, target.width, generator),
            train,
            validation,
            target,
            schedule=Schedule(epochs=self.epochs, learning_rate=self.learning_rate, weight_decay=self.weight_decay),
            seed=seed,
        )

    def contributions(self, fitted: FittedModel, adapter: Adapter, structure: Structure) -> Contributions:
        """Gradient: Σ ∂f/∂B ∘ B at each site, by columns of B on the balanced factors."""
        inputs = self.inputs([Sample(lambda: adapter, {})], structure)
        gradients = cast("FittedNetwork", fitted).gradients(inputs)
        rows: list[NDArray[np.float64]] = []  # of each site, [k, t]
        for i in range(len(inputs) // 2):
            B = inputs[f"B{i}"]
            terms = np.stack([(gradient[f"B{i}"] * B).sum(axis=-2)[0] for gradient in gradients], axis=-1)
            rows += list(terms)
        directions = dict(zip(ordered_sites(structure), rows, strict=True))
        return Contributions("gradient", {s: part.sum(axis=0) for s, part in directions.items()}, {}, directions, None)

    def restore(
        self,
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
        target: Target,
        structure: Structure,
    ) -> FittedModel:
        """From the network's parameters."""
        import torch

        from lorascope.predict.neural import restore_network

        first = len(structure.sites) * self.hidden**2 * self.head_hidden
        if arrays["net.head.0.weight"].size != first:
            raise ValueError("the weights are not those of the stated options")
        empty: dict[str, torch.Tensor] = {}
        for i, ((out, in_), names) in enumerate(stacks_of(structure).items()):
            empty[f"B{i}"], empty[f"A{i}"] = torch.zeros(0, len(names), out, 1), torch.zeros(0, len(names), 1, in_)
        return restore_network(self._network(empty, target.width, torch.Generator()), arrays, target)


MODEL = GLNetModel
