"""The engine: N adapters trained at once over one shared, frozen, unmodified base.

The batch is laid out as [N · b, …], adapter by adapter. The base sees one big batch; at each site the layer
sees it as [N, rows, in] and adds each adapter's own update by batched matrix products. The sum over adapters of
their mean losses has independent gradients, so every adapter trains as if it were alone.

Adapters that have done their steps stay in the batch with a learning rate of zero (their slot is masked, not
removed): all shapes stay the same, and with them every bit of what the others compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorascope.adapter import Adapter, Provenance, Update
from lorascope.errors import ForgeError
from lorascope.forge.kind import Kind


@dataclass(frozen=True)
class Slot:
    """One adapter to be trained: its rank, alpha, and the seed of its initialisation."""

    rank: int
    alpha: float
    init_seed: int


class AdapterStack:
    """N adapters of one kind at the sites of one base.

    Args:
        base: any ``nn.Module``; its parameters are not touched and need no gradient.
        sites: names of submodules, each of a class that ``kind`` can adapt.
        slots: the adapters.
        kind: how they adapt a layer.

    Raises:
        ForgeError: where a site is not in the base or cannot be adapted.
    """

    def __init__(self, base: nn.Module, sites: Sequence[str], slots: Sequence[Slot], kind: Kind) -> None:
        modules = dict(base.named_modules())
        self.base, self.slots, self.kind = base, tuple(slots), kind
        self.modules: dict[str, nn.Module] = {}
        for site in sites:
            if site not in modules:
                raise ForgeError("the base has no such layer", key=site, expected="a module path of the base")
            kind.check(site, modules[site])
            self.modules[site] = modules[site]
        first = [self._initial(slot) for slot in self.slots]
        shapes = {
            key: tuple(max(sizes) for sizes in zip(*(initial[key].shape for initial in first), strict=True))
            for key in first[0]
        }
        like = next(iter(first[0].values()))
        # one buffer for all parameters: the optimiser is a handful of operations on it
        width = sum(math.prod(shape) for shape in shapes.values())
        self.values = like.new_zeros(len(self.slots), width)
        scales = [kind.scale(slot.rank, slot.alpha) for slot in self.slots]
        self.scale = like.new_tensor(scales).view(-1, 1, 1)
        self.parameters: dict[str, dict[str, Tensor]] = {site: {} for site in sites}
        start = 0
        for (site, name), shape in shapes.items():
            stop = start + math.prod(shape)
            value = self.values[:, start:stop].view(len(self.slots), *shape)
            for number, initial in enumerate(first):
                given = initial[site, name]
                value[(number, *(slice(size) for size in given.shape))] = given
            self.parameters[site][name] = value.requires_grad_()
            start = stop

    def _initial(self, slot: Slot) -> dict[tuple[str, str], Tensor]:
        generator = torch.Generator().manual_seed(slot.init_seed)
        return {
            (site, name): value
            for site, module in self.modules.items()
            for name, value in self.kind.initialise(module, slot.rank, generator).items()
        }

    @contextmanager
    def attached(self) -> Iterator[Callable[[Any], Any]]:
        """The base with all N adapters on, as a function of a batch [N · b, …]; afterwards it is as before.

        Raises:
            ForgeError: where the base has a layer in training mode that would mix the adapters of a batch.
        """
        _refuse_mixing(self.base)
        # on the instance, not on the class: the base stays unmodified and other models are not touched
        try:
            for site, module in self.modules.items():
                module.forward = self._adapted(module, self.parameters[site])
            yield self.base
        finally:
            for module in self.modules.values():
                vars(module).pop("forward", None)

    def _adapted(self, module: nn.Module, parameters: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        count = len(self.slots)

        def forward(x: Tensor) -> Tensor:
            if x.shape[0] % count:
                raise ForgeError(
                    "the batch is not a whole number of examples for each adapter",
                    expected=f"a multiple of {count}",
                    found=x.shape[0],
                )
            y = self.kind.forward(x.reshape(count, -1, x.shape[-1]), module, parameters, self.scale)
            return y.view(*x.shape[:-1], y.shape[-1])

        return forward

    def adapter(self, number: int, provenance: Provenance | None = None) -> Adapter:
        """The adapter of one slot, as it is now."""
        slot = self.slots[number]
        sites: dict[str, Update] = {
            site: self.kind.export(
                module,
                {name: value.detach()[number] for name, value in self.parameters[site].items()},
                slot.rank,
                slot.alpha,
            )
            for site, module in self.modules.items()
        }
        return Adapter(sites, provenance or Provenance(kind=self.kind.name))

    def is_finite(self, number: int) -> bool:
        """Whether no parameter of the adapter has become NaN or infinite."""
        return bool(torch.isfinite(self.values[number]).all())


Batches = Callable[[int], tuple[Any, Any]]
"""step → (inputs [N · b, …], targets): the data of all adapters for one step."""

Loss = Callable[[Any, Any], Tensor]
"""(outputs of the base, targets) → the loss of each example, [N · b]."""


def train(
    stack: AdapterStack,
    batches: Batches,
    loss: Loss,
    *,
    learning_rates: Sequence[float],
    steps: Sequence[int],
    weight_decay: float = 0.0,
) -> None:
    """Train every adapter of the stack for its own number of steps at its own learning rate, by AdamW.

    Raises:
        ForgeError: where the base mixes the examples of a batch, or the losses are not one per example.
    """
    count = len(stack.slots)
    optimiser = AdamW(stack.values, weight_decay=weight_decay)
    rates = stack.values.new_tensor(list(learning_rates)).view(-1, 1)
    last = torch.tensor(list(steps)).view(-1, 1)
    leaves = [value for named in stack.parameters.values() for value in named.values()]
    with stack.attached() as model:
        for step in range(max(steps, default=0)):
            inputs, targets = batches(step)
            losses = loss(model(inputs), targets)
            if losses.ndim != 1 or len(losses) % count:
                raise ForgeError(
                    "a loss must give one number per example, or adapters would be coupled",
                    expected="[N · b]",
                    found=list(losses.shape),
                )
            total = losses.view(count, -1).mean(1).sum()
            gradients = torch.autograd.grad(total, leaves)
            flat = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
            optimiser.step(flat, rates * (step < last))


class AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) on values [N, P], with one learning rate per row.

    A row with learning rate 0 stays as it is, bit for bit.
    """

    def __init__(
        self,
        values: Tensor,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.values, self.betas, self.eps, self.weight_decay = values, betas, eps, weight_decay
        self.mean = torch.zeros_like(values)
        self.square = torch.zeros_like(values)
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Tensor, rates: Tensor) -> None:
        """One step; gradients [N, P], rates [N, 1]."""
        self.steps += 1
        first, second = self.betas
        self.mean.lerp_(gradients, 1 - first)
        self.square.mul_(second).addcmul_(gradients, gradients, value=1 - second)
        root = (self.square / (1 - second**self.steps)).sqrt_().add_(self.eps)
        if self.weight_decay:
            self.values.mul_(1 - rates * self.weight_decay)
        update = torch.div(self.mean, root, out=root).mul_(rates / (1 - first**self.steps))
        self.values.sub_(update)


def _refuse_mixing(base: nn.Module) -> None:
    for name, module in base.named_modules():
        if not module.training:
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            reason = "in training mode it normalises over the batch, which holds examples of all adapters"
        elif isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            reason = "in training mode all adapters would draw from one stream of random numbers"
        else:
            continue
        raise ForgeError(
            f"{type(module).__name__} would mix the adapters of a batch: {reason}",
            key=name or type(module).__name__,
            hint="call base.eval() first",
        )
