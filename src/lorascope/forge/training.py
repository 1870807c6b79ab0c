"""``train``: many adapters at once, each with its own data, learning rate, schedule, steps and decay.

Every adapter that has done its steps, or is stopped, stays in the batch with a learning rate of zero, so that what the
others compute keeps every bit. ``is_fast`` takes it out instead, which is quicker where steps differ much, and equal
to rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lorascope.errors import ForgeError
from lorascope.forge.coupling import refuse_coupled_losses
from lorascope.forge.layer import refuse_uncalled
from lorascope.forge.optimiser import SGD, AdamW, Optimiser
from lorascope.forge.schedule import Schedule, factors
from lorascope.forge.stack import AdapterStack

Batches = Callable[[int, int], tuple[Any, Any]]
"""(step, part) → (inputs [N · b, …], targets): the data of all adapters for one part of one step.

An adapter that accumulates gradients takes the parts 0 … accumulate − 1 of each step, the others part 0 alone; what
is given for further parts has no weight.
"""

Loss = Callable[[Any, Any], Tensor]
"""(outputs of the base, targets) → the loss of each example, [N · b]."""

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Training:
    """How one adapter is trained.

    Args:
        learning_rate: of the optimiser, at the top of the schedule.
        steps: optimiser steps.
        weight_decay: decoupled in AdamW, added to the gradient in SGD.
        optimiser: ``adamw`` or ``sgd``.
        momentum: of SGD.
        schedule: how the learning rate goes: ``constant``, ``linear`` or ``cosine`` to zero.
        warmup: steps of linear increase before.
        accumulate: parts of a step whose gradients are averaged.
        clip: the largest norm of the adapter's gradient, None for any.
    """

    learning_rate: float
    steps: int
    weight_decay: float = 0.0
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.0
    schedule: Schedule = "constant"
    warmup: int = 0
    accumulate: int = 1
    clip: float | None = None

    def __post_init__(self) -> None:
        for name, known in (("optimiser", ("adamw", "sgd")), ("schedule", get_args(Schedule))):
            if getattr(self, name) not in known:
                raise ForgeError("there is no such one", key=name, expected=", ".join(known), found=getattr(self, name))
        for name, least in (("steps", 0), ("warmup", 0), ("accumulate", 1)):
            if getattr(self, name) < least:
                raise ForgeError("is too small", key=name, expected=f"at least {least}", found=getattr(self, name))
        if self.clip is not None and not self.clip > 0:
            raise ForgeError("must be positive", key="clip", found=self.clip)


@dataclass(frozen=True)
class EarlyStop:
    """When an adapter is done before its steps are.

    Args:
        score: (the model with the adapters on, their numbers) → a score of each, the smaller the better; the numbers
            are all, unless finished adapters are taken out.
        every: steps between two looks.
        patience: looks without a better score after which an adapter stops.
    """

    score: Callable[[Any, Sequence[int]], Tensor]
    every: int
    patience: int


@dataclass(frozen=True)
class Trained:
    """What happened: the steps that each adapter took, and its training loss at the last of them (NaN for none)."""

    steps: list[int]
    losses: list[float]


def train(
    stack: AdapterStack,
    batches: Batches,
    loss: Loss,
    trainings: Sequence[Training],
    *,
    stop: EarlyStop | None = None,
    precision: Precision = "float32",
    is_fast: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Trained:
    """Train every adapter of the stack in its own way.

    Args:
        stack: the adapters; their values are changed in place.
        batches: the data.
        loss: of each example.
        trainings: one for each adapter.
        stop: when adapters stop early.
        precision: ``bfloat16`` runs the products of the base and the adapters in it, the parameters stay as they are.
        is_fast: take finished adapters out of the batch: the others then equal the slow way to rounding.
        on_step: called after each step with its number.

    Raises:
        ForgeError: where the base or the loss mixes the examples of a batch, or a site is not used by the base.

    >>> import pytest; torch = pytest.importorskip("torch")
    >>> from lorascope.forge import AdapterStack, Slot, Training, train
    >>> from lorascope.forge.kinds import KINDS
    >>> base = torch.nn.Sequential(torch.nn.Linear(2, 2))
    >>> stack = AdapterStack(base, ["0"], [Slot(1, 1.0, seed) for seed in (0, 1)], KINDS["lora"])
    >>> x, y = torch.ones(2 * 4, 2), torch.zeros(2 * 4, 2)
    >>> trained = train(stack, lambda step, part: (x, y), lambda z, y: (z - y).square().mean(1),
    ...                 [Training(learning_rate=0.05, steps=steps) for steps in (1, 50)])
    >>> trained.steps, trained.losses[1] < trained.losses[0]
    ([1, 50], True)
    """
    count = len(stack.slots)
    if len(trainings) != count:
        raise ForgeError("there is not one training for each adapter", expected=count, found=len(trainings))
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise ForgeError("there is no such one", key="precision", expected=known, found=precision)
    taken = [0] * count
    losses = [float("nan")] * count
    last = [training.steps for training in trainings]
    run = _Run(stack, list(range(count)), trainings, loss, precision)
    watch = None if stop is None else _Watch(count, stop)
    step = 0
    while step < max((last[number] for number in run.numbers), default=0):
        is_active = [step < last[number] for number in run.numbers]
        if is_fast and sum(is_active) <= _WORTHWHILE * len(is_active):
            run.take_out([not active for active in is_active], stack)
            is_active = [True] * len(run.numbers)
        values = run.step(batches, step, is_active, is_first=step == 0)
        for number, value, active in zip(run.numbers, values, is_active, strict=True):
            if active:
                taken[number], losses[number] = step + 1, value
        step += 1
        if watch is not None and step % watch.stop.every == 0:
            for number in watch.stopped(run, is_active):
                last[number] = step
        if on_step is not None:
            on_step(step)
    run.store(stack)
    return Trained(taken, losses)


_WORTHWHILE = 0.75  # share of adapters still active below which taking out the others pays for the copies


class _Run:
    """The adapters that are in the batch now, with their optimisers."""

    def __init__(
        self,
        stack: AdapterStack,
        numbers: list[int],
        trainings: Sequence[Training],
        loss: Loss,
        precision: Precision,
    ) -> None:
        self.stack, self.numbers, self.loss, self.precision = stack, numbers, loss, precision
        self.trainings = list(trainings)
        self.whole = len(numbers)
        values = stack.values
        column = [[training.weight_decay] for training in trainings]
        self.is_sgd = values.new_tensor([[training.optimiser == "sgd"] for training in trainings])
        decay = values.new_tensor(column)
        self.optimisers: list[tuple[Tensor, Optimiser]] = []
        if not bool(self.is_sgd.all()):
            self.optimisers.append((1 - self.is_sgd, AdamW(values, weight_decay=decay)))
        if bool(self.is_sgd.any()):
            momentum = values.new_tensor([[training.momentum] for training in trainings])
            self.optimisers.append((self.is_sgd, SGD(values, momentum=momentum, weight_decay=decay)))
        self._settle()

    def _settle(self) -> None:
        self.rates = self.stack.rates()
        self._flat = torch.empty_like(self.stack.values)
        clips = [torch.inf if training.clip is None else training.clip for training in self.trainings]
        self.clip = None if min(clips) == torch.inf else self.stack.values.new_tensor(clips).view(-1, 1)

    def step(self, batches: Batches, step: int, is_active: Sequence[bool], *, is_first: bool) -> list[float]:
        """One step of all adapters; gives their losses."""
        parts = max(training.accumulate for training in self.trainings)
        gradient = self.stack.values.new_zeros(())
        losses = self.stack.values.new_zeros(len(self.numbers))
        for part in range(parts):
            weights = self.stack.values.new_tensor(
                [(part < training.accumulate) / training.accumulate for training in self.trainings]
            )
            inputs, targets = self._chosen(batches(step, part))
            if is_first and part == 0:
                self._try_out(inputs, targets)
            self.stack.begin(step, part)
            of_each = self._losses(inputs, targets, is_training=True)
            gradients = torch.autograd.grad((of_each * weights).sum(), self.stack.leaves)
            # into the same memory each time: fresh pages cost as much as the copy
            flat = torch.cat([one.flatten(1) for one in gradients], dim=1, out=self._flat if part == 0 else None)
            gradient = flat if part == 0 else gradient.add_(flat)
            losses += of_each.detach() * weights
        if self.stack.padding is not None:
            gradient.mul_(self.stack.padding)
        if not all(is_active):
            # a rate of zero alone would let NaN through
            gradient.masked_fill_(gradient.new_tensor(is_active).view(-1, 1) == 0, 0.0)
        if self.clip is not None:
            norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient = gradient * (self.clip / (norms + 1e-6)).clamp(max=1)  # as torch.nn.utils.clip_grad_norm_
        now = [
            training.learning_rate * factor if active else 0.0
            for training, factor, active in zip(self.trainings, factors(self.trainings, step), is_active, strict=True)
        ]
        rates = self.stack.values.new_tensor(now).view(-1, 1)
        if self.rates is not None:
            rates = rates * self.rates
        for mask, optimiser in self.optimisers:
            optimiser.step(gradient, rates if len(self.optimisers) == 1 else rates * mask)
        self.stack.state = self.stack.kind.after_step(self.stack, gradient, step, self.trainings, is_active)
        return losses.tolist()

    def _chosen(self, data: tuple[Any, Any]) -> tuple[Any, Any]:
        """The examples of the adapters that are in the batch, on the device of the base."""
        device = self.stack.values.device
        index = None
        if len(self.numbers) < self.whole:
            index = torch.tensor(self.numbers)

        def chosen(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if index is not None:
                value = value.view(self.whole, -1, *value.shape[1:])[index.to(value.device)].flatten(0, 1)
            return value.to(device)

        inputs, targets = tree_map(chosen, data)
        return inputs, targets

    def _losses(self, inputs: Any, targets: Any, *, is_training: bool) -> Tensor:
        count = len(self.numbers)
        with self.stack.attached(is_training=is_training) as model, self._precise():
            outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
            losses = self.loss(outputs, targets)
        if losses.ndim != 1 or len(losses) % count:
            raise ForgeError(
                "a loss must give one number per example, or adapters would be coupled",
                expected="[N · b]",
                found=list(losses.shape),
            )
        of_each = losses.view(count, -1).mean(1).to(self.stack.values.dtype)
        penalty = self.stack.kind.penalty(self.stack) if is_training else None
        return of_each if penalty is None else of_each + penalty

    def _precise(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.stack.values.device.type, dtype=torch.bfloat16)

    def _try_out(self, inputs: Any, targets: Any) -> None:
        losses = self._losses(inputs, targets, is_training=False)
        refuse_uncalled(self.stack.is_called)
        refuse_coupled_losses(losses, self.stack.leaves)

    def take_out(self, is_done: Sequence[bool], whole: AdapterStack) -> None:
        """Go on without those that are done, whose values go into the whole stack."""
        self.store(whole)
        kept = [place for place, done in enumerate(is_done) if not done]
        rows = torch.tensor(kept, device=self.stack.values.device)
        self.stack = self.stack.subset(kept)
        self.numbers = [self.numbers[place] for place in kept]
        self.trainings = [self.trainings[place] for place in kept]
        for _, optimiser in self.optimisers:
            optimiser.subset(self.stack.values, rows)
        self.optimisers = [(mask[rows], optimiser) for mask, optimiser in self.optimisers]
        self._settle()

    def store(self, whole: AdapterStack) -> None:
        """Put the values into the stack of all adapters."""
        if self.stack is not whole:
            with torch.no_grad():
                whole.values[self.numbers] = self.stack.values


class _Watch:
    """The best score of each adapter, and for how many looks it has not been beaten."""

    def __init__(self, count: int, stop: EarlyStop) -> None:
        self.stop = stop
        self._best = [float("inf")] * count
        self._since = [0] * count

    def stopped(self, run: _Run, is_active: Sequence[bool]) -> list[int]:
        """The numbers of the adapters that stop now."""
        with run.stack.attached() as model, torch.no_grad():
            scores = self.stop.score(model, run.numbers).tolist()
        if len(scores) != len(run.numbers):
            raise ForgeError("there is not one score for each adapter", expected=len(run.numbers), found=len(scores))
        stopped: list[int] = []
        for number, score, active in zip(run.numbers, scores, is_active, strict=True):
            self._since[number] = 0 if score < self._best[number] else self._since[number] + 1
            self._best[number] = min(score, self._best[number])
            if active and self._since[number] >= self.stop.patience:
                stopped.append(number)
        return stopped
