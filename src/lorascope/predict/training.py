"""The training loop of the neural models: minibatches, AdamW, early stopping on validation loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lorascope.predict.targets import Target

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW with a cosine learning rate, stopped ``patience`` epochs after the best."""

    epochs: int = 60
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    patience: int = 15


def loss_of(target: Target) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Mean square for regression, cross-entropy of one class or of independent labels otherwise."""
    if target.task == "regression":
        return torch.nn.functional.mse_loss
    if target.task == "multi-class":
        return torch.nn.functional.cross_entropy
    return torch.nn.functional.binary_cross_entropy_with_logits


def train(
    network: torch.nn.Module,
    inputs: Batch,
    targets: torch.Tensor,
    validation_inputs: Batch,
    validation_targets: torch.Tensor,
    *,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    schedule: Schedule,
    generator: torch.Generator,
) -> float:
    """Train in place; the network ends with the weights of its best epoch on validation. Returns that loss.

    ``network`` maps a batch (name → tensor, first axis the samples) to scores [n, width]. Without validation
    samples the training loss decides. Tensors are in the dtype of the network.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    n = len(targets)
    steps = schedule.epochs * -(-n // schedule.batch)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    best, best_state, waited = float("inf"), _copy(network), 0
    watched = (validation_inputs, validation_targets) if len(validation_targets) else (inputs, targets)
    for _ in range(schedule.epochs):
        network.train()
        for index in torch.randperm(n, generator=generator).split(schedule.batch):
            optimiser.zero_grad()
            batch = {name: tensor[index] for name, tensor in inputs.items()}
            loss(network(batch), targets[index]).backward()
            optimiser.step()
            decay.step()
        current = evaluate(network, *watched, loss=loss)
        if current < best:
            best, best_state, waited = current, _copy(network), 0
        elif (waited := waited + 1) >= schedule.patience:
            break
    network.load_state_dict(best_state)
    return best


@torch.no_grad()
def evaluate(
    network: torch.nn.Module,
    inputs: Batch,
    targets: torch.Tensor,
    *,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> float:
    """The loss without dropout."""
    return float(loss(scores(network, inputs), targets))


@torch.no_grad()
def scores(network: torch.nn.Module, inputs: Batch, *, block: int = 64) -> torch.Tensor:
    """The network's scores [n, width], block by block, in evaluation mode."""
    network.eval()
    n = len(next(iter(inputs.values())))
    parts = [
        network({name: tensor[start : start + block] for name, tensor in inputs.items()})
        for start in range(0, n, block)
    ]
    return torch.cat(parts)


def _copy(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
