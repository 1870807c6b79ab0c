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
from lorascope.predict.blocks import blocks_of
from lorascope.predict.explanation import Contributions
from lorascope.predict.model import (
    GATES,
    FittedModel,
    Inputs,
    Invariance,
    RankPolicy,
    Sample,
    Split,
    Structure,
    check_options,
    ordered_sites,
)
from lorascope.predict.targets import Target
from lorascope.symmetry import balance, pad_rank, stack_adapters

if TYPE_CHECKING:
    import torch

    from lorascope.predict.neural import FittedNetwork


@dataclass(frozen=True)
class GLNetModel:
    """Options: the network's (``hidden``, ``layers``, ``gate``, …) and its training's."""

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

    def __post_init__(self) -> None:
        check_options(self)

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """``B0`` [n, S, out, k] and ``A0`` [n, S, k, in] for the first shape, and so on; k the largest rank."""
        parts: dict[str, list[NDArray[Any]]] = {}
        for block in blocks_of(samples, structure):
            for i, stack in enumerate(stack_adapters(block, sites=list(structure.sites))):
                B, A = balance(stack.B, stack.A)
                parts.setdefault(f"B{i}", []).append(B)
                parts.setdefault(f"A{i}", []).append(A)
            if advance is not None:
                advance(len(block))
        return _joined(parts)

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
        shapes: dict[tuple[int, int], int] = {}
        for shape in structure.sites.values():
            shapes[shape] = shapes.get(shape, 0) + 1
        empty: dict[str, torch.Tensor] = {}
        for i, ((out, in_), count) in enumerate(shapes.items()):
            empty[f"B{i}"], empty[f"A{i}"] = torch.zeros(0, count, out, 1), torch.zeros(0, count, 1, in_)
        return restore_network(self._network(empty, target.width, torch.Generator()), arrays, target)


def _joined(parts: Mapping[str, list[NDArray[Any]]]) -> Inputs:
    """The blocks of every stack in one array, ranks padded to the largest."""
    joined: Inputs = {}
    for i in range(len(parts) // 2):
        Bs, As = parts[f"B{i}"], parts[f"A{i}"]
        rank = max(B.shape[-1] for B in Bs)
        padded = [pad_rank(B, A, rank) for B, A in zip(Bs, As, strict=True)]
        joined[f"B{i}"] = np.concatenate([B for B, _ in padded])
        joined[f"A{i}"] = np.concatenate([A for _, A in padded])
    return joined


MODEL = GLNetModel
