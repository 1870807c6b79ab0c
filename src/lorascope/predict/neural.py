"""What the neural models share: from a network to a fitted model, its state and back.

Networks are trained in float32 and judge in float64, so that a prediction's rounding is that of the adapter file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from lorascope.predict.model import Inputs, Split
from lorascope.predict.targets import Target
from lorascope.predict.training import Batch, Schedule, loss_of, scores, train


class FittedNetwork:
    """A trained network."""

    def __init__(self, network: torch.nn.Module, calibration: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
        self.network = network.double().eval()
        self.calibration = calibration

    def scores(self, inputs: Inputs) -> NDArray[np.float64]:
        """[n, width]."""
        return scores(self.network, _tensors(inputs, torch.float64)).numpy()

    def gradients(self, inputs: Inputs) -> list[Inputs]:
        """The derivatives of each score, summed over the samples, by every input: one dictionary per score."""
        found: list[Inputs] = []
        tensors = {name: tensor.requires_grad_() for name, tensor in _tensors(inputs, torch.float64).items()}
        scores = self.network.eval()(tensors)
        for column in range(scores.shape[1]):
            parts = torch.autograd.grad(scores[:, column].sum(), list(tensors.values()), retain_graph=True)
            found.append({name: part.numpy() for name, part in zip(tensors, parts, strict=True)})
        return found

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The network's parameters and buffers."""
        return {name: tensor.numpy() for name, tensor in self.network.state_dict().items()}, {}


def fit_network(
    build: Callable[[torch.Generator, Batch], torch.nn.Module],
    train_split: Split,
    validation: Split,
    target: Target,
    *,
    schedule: Schedule,
    seed: int,
) -> FittedNetwork:
    """Build with a seeded generator and the training inputs, train, and keep the validation scores.

    Without validation samples there are none: scores of training samples, which set the weights, calibrate nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, held_out = _tensors(train_split.inputs), _tensors(validation.inputs)
    network = build(generator, inputs)
    train(
        network,
        inputs,
        torch.as_tensor(train_split.targets, dtype=torch.float32),
        held_out,
        torch.as_tensor(validation.targets, dtype=torch.float32),
        loss=loss_of(target),
        schedule=schedule,
        generator=generator,
    )
    fitted = FittedNetwork(network, (np.zeros((0, target.width)), validation.targets))
    if len(validation.targets):
        fitted.calibration = (fitted.scores(validation.inputs), validation.targets)
    return fitted


def restore_network(network: torch.nn.Module, arrays: Mapping[str, NDArray[Any]], target: Target) -> FittedNetwork:
    """A network with saved parameters; on the meta device, wrong sizes fail before they are allocated.

    Raises:
        ValueError: where they are not those of the network, by name.
    """
    for what, names in (
        ("missing", network.state_dict().keys() - arrays.keys()),
        ("of no part of the network", arrays.keys() - network.state_dict().keys()),
    ):
        if names:
            raise ValueError(f"arrays that are {what}: {', '.join(sorted(names)[:3])}")
    parameters = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    network.load_state_dict(parameters, assign=True)
    return FittedNetwork(network, (np.zeros((0, target.width)), np.zeros((0, target.width))))


class Dropout(torch.nn.Module):
    """Dropout that draws from a generator of its own, so that a seed gives the same network twice."""

    def __init__(self, probability: float, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self._probability = probability
        self.generator = generator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x with a share of its entries zero and the others scaled up, in training alone."""
        if not self.training or not self._probability:
            return x
        kept = torch.rand(x.shape, generator=self.generator) >= self._probability
        return x * kept.to(x.dtype) / (1 - self._probability)


def floored(spread: torch.Tensor) -> torch.Tensor:
    """Spreads no smaller than a twentieth of the root mean square of the last axis, 1 where all of it are zero.

    A column that varies less carries rounding rather than knowledge, and is not blown up.

    >>> floored(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    tensor([[1.0000, 0.0354],
            [1.0000, 1.0000]])
    """
    floor = 0.05 * spread.square().mean(-1, keepdim=True).sqrt()
    return torch.where(floor > 0, spread.maximum(floor), torch.ones_like(spread))


class Standardised(torch.nn.Module):
    """(x − mean) / spread by training statistics, then a perceptron with one hidden layer and LayerNorm.

    The MLP of Learning on LoRAs: Linear, LayerNorm, ReLU, Linear, with dropout before the last.
    """

    def __init__(self, columns: int, hidden: int, outputs: int, *, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("spread", torch.ones(columns))
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(columns, hidden),
            torch.nn.LayerNorm(hidden),
            torch.nn.ReLU(),
            Dropout(dropout, generator=generator),
            torch.nn.Linear(hidden, outputs),
        )
        with torch.no_grad():
            for layer in self.layers:
                if isinstance(layer, torch.nn.Linear):
                    for parameter in layer.parameters():
                        parameter.uniform_(-1, 1, generator=generator).mul_(layer.in_features**-0.5)

    @staticmethod
    def columns(batch: Batch) -> int:
        """How many columns the inputs are."""
        return batch["x"].shape[1]

    def calibrate(self, batch: Batch) -> Self:
        """Take the statistics of the training inputs."""
        x = batch["x"]
        self.get_buffer("mean").copy_(x.mean(0))
        self.get_buffer("spread").copy_(floored(x.std(0)))
        return self

    def forward(self, batch: Batch) -> torch.Tensor:
        """[n, outputs]."""
        return self.layers((batch["x"] - self.get_buffer("mean")) / self.get_buffer("spread"))


def _tensors(inputs: Inputs, dtype: torch.dtype = torch.float32) -> Batch:
    return {name: torch.as_tensor(array, dtype=dtype) for name, array in inputs.items()}
