"""Networks on the thin SVD of every site: the inputs, and how such a network is made, trained and restored.

What is built from (U, S, V) must not see their stabiliser: signs, rotations inside a cluster of equal singular values,
the arbitrary vectors that go with σ = 0. Each member says how it does that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.errors import PredictorError
from lorascope.predict.blocks import blocks_of, network_stacks
from lorascope.predict.model import (
    CalibratedOn,
    FittedModel,
    Inputs,
    Sample,
    Split,
    Structure,
    check_options,
    stacks_of,
)
from lorascope.predict.targets import Target
from lorascope.symmetry import SiteStack

if TYPE_CHECKING:
    import torch


HEADS = 4
"""Heads of attention, where there is one."""


class SiteGroup(NamedTuple):
    """``sites`` sites of one shape (out, in)."""

    sites: int
    out: int
    in_: int


def site_groups(structure: Structure) -> list[SiteGroup]:
    """The distinct shapes of a structure in the order of ``stack_adapters``.

    >>> site_groups(Structure({"q": (4, 3), "v": (4, 3), "o": (3, 4)}, 2))
    [SiteGroup(sites=2, out=4, in_=3), SiteGroup(sites=1, out=3, in_=4)]
    """
    return [SiteGroup(len(names), *shape) for shape, names in stacks_of(structure).items()]


def singular_inputs(
    samples: Iterable[Sample],
    structure: Structure,
    advance: Callable[[int], Any] | None = None,
    *,
    stacks: Callable[[Sequence[Adapter], Structure], list[SiteStack]] = network_stacks,
) -> Inputs:
    """``U0`` [n, S, out, k], ``S0`` [n, S, k] and ``V0`` [n, S, in, k] for the first shape, and so on; float64.

    k is the largest rank, with zeros where an adapter has less. All of it is in memory: 8 · k · (out + in + 1) bytes
    per site and adapter. ``stacks`` makes stacks of a block, by default as a network needs them.
    """
    parts: dict[str, list[NDArray[Any]]] = {}
    for block in blocks_of(samples, structure):
        for i, stack in enumerate(stacks(block, structure)):
            U, S, Vh = stack.svd
            for name, array in ((f"U{i}", U), (f"S{i}", S), (f"V{i}", np.swapaxes(Vh, -1, -2))):
                parts.setdefault(name, []).append(array)
        if advance is not None:
            advance(len(block))
    return {name: _joined(arrays) for name, arrays in parts.items()}


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The blocks in one array, the last axis padded with zeros to the largest."""
    most = max(array.shape[-1] for array in arrays)
    return np.concatenate(
        [np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, most - array.shape[-1])]) for array in arrays]
    )


def check_width(width: int) -> None:
    """Refuse tokens that cannot be shared out among four heads of attention.

    Raises:
        PredictorError: naming the option.
    """
    if width % HEADS:
        raise PredictorError(
            "the option has an impossible value", key="width", expected=f"a multiple of {HEADS}", found=width
        )


@dataclass(frozen=True)
class SingularNetwork(ABC):
    """What the members share; a member adds its options and ``_network``.

    Training is by minibatches, so that its memory is that of the inputs, which stay in float64 and float32.
    """

    dropout: float = 0.5
    epochs: int = 60
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    calibrated_on: ClassVar[CalibratedOn] = "validation"

    def __post_init__(self) -> None:
        check_options(self)

    @abstractmethod
    def _network(self, groups: Sequence[SiteGroup], outputs: int) -> torch.nn.Module:
        """The network, without storage; it has ``calibrate(batch)``, which takes statistics of training inputs."""

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """The thin SVD of every site, as ``singular_inputs`` gives it."""
        return singular_inputs(samples, structure, advance)

    def fit(self, train: Split, validation: Split, target: Target, structure: Structure, *, seed: int) -> FittedModel:
        """By gradient descent, stopped on validation loss."""
        from lorascope.predict.models._layers import initialised
        from lorascope.predict.neural import fit_network
        from lorascope.predict.training import Schedule

        def build(generator: torch.Generator, batch: Mapping[str, torch.Tensor]) -> torch.nn.Module:
            network: Any = initialised(lambda: self._network(site_groups(structure), target.width), generator)
            network.calibrate(batch)
            return network

        schedule = Schedule(
            epochs=self.epochs, batch=self.batch, learning_rate=self.learning_rate, weight_decay=self.weight_decay
        )
        return fit_network(build, train, validation, target, schedule=schedule, seed=seed)

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

        with torch.device("meta"):
            network = self._network(site_groups(structure), target.width)
        return restore_network(network, arrays, target)
