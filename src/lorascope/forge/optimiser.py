"""Optimisers of N adapters at once, on values [N, P] with a learning rate for each row, or each entry.

A row with learning rate 0 and a finite gradient stays as it is, bit for bit: adapters that have done their steps
stay in the batch, masked and not removed, so that all shapes stay the same, and with them every bit of what the others
compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Optimiser(ABC):
    """One way to step; its state is kept for each row."""

    states: tuple[str, ...]
    """The names of its state tensors [N, P]."""

    @abstractmethod
    def step(self, gradients: Tensor, rates: Tensor) -> None:
        """One step in place; gradients [N, P], rates [N, 1] or [N, P]."""

    def subset(self, values: Tensor, rows: Tensor) -> None:
        """Go on with some of the rows, whose values are now in ``values``."""
        self.values = values
        for name in self.states:
            setattr(self, name, getattr(self, name)[rows].clone())


class AdamW(Optimiser):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101).

    Args:
        values: [N, P], changed in place.
        weight_decay: decoupled, one for all or [N, 1].
    """

    states = ("mean", "square")

    def __init__(
        self,
        values: Tensor,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 0.0,
    ) -> None:
        self.values, self.betas, self.eps = values, betas, eps
        self.weight_decay = _decay(weight_decay)
        self.mean = torch.zeros_like(values)
        self.square = torch.zeros_like(values)
        self._root = torch.empty_like(values)
        self.steps = 0

    def subset(self, values: Tensor, rows: Tensor) -> None:
        super().subset(values, rows)
        self._root = torch.empty_like(values)
        self.weight_decay = _rows_of(self.weight_decay, rows)

    @torch.no_grad()
    def step(self, gradients: Tensor, rates: Tensor) -> None:
        self.steps += 1
        first, second = self.betas
        self.mean.lerp_(gradients, 1 - first)
        self.square.mul_(second).addcmul_(gradients, gradients, value=1 - second)
        root = torch.div(self.square, 1 - second**self.steps, out=self._root).sqrt_().add_(self.eps)
        if self.weight_decay is not None:
            self.values.mul_(1 - rates * self.weight_decay)
        update = torch.div(self.mean, root, out=root).mul_(rates / (1 - first**self.steps))
        self.values.sub_(update)


class SGD(Optimiser):
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD``: the decay is added to the gradient."""

    states = ("velocity",)

    def __init__(self, values: Tensor, *, momentum: float | Tensor = 0.0, weight_decay: float | Tensor = 0.0) -> None:
        self.values, self.momentum = values, momentum
        self.weight_decay = _decay(weight_decay)
        self.velocity = torch.zeros_like(values)

    def subset(self, values: Tensor, rows: Tensor) -> None:
        super().subset(values, rows)
        self.weight_decay = _rows_of(self.weight_decay, rows)
        if isinstance(self.momentum, Tensor):
            self.momentum = self.momentum[rows]

    @torch.no_grad()
    def step(self, gradients: Tensor, rates: Tensor) -> None:
        if self.weight_decay is not None:
            gradients = gradients + self.weight_decay * self.values
        self.velocity.mul_(self.momentum).add_(gradients)
        self.values.sub_(rates * self.velocity)


def _decay(weight_decay: float | Tensor) -> float | Tensor | None:
    is_none = not bool(weight_decay.any()) if isinstance(weight_decay, Tensor) else weight_decay == 0
    return None if is_none else weight_decay


def _rows_of(value: float | Tensor | None, rows: Tensor) -> float | Tensor | None:
    return value[rows] if isinstance(value, Tensor) else value
