"""``AdapterStack``: N adapters of one kind over one shared, frozen, unmodified base.

The batch is laid out as [N · b, …], adapter by adapter. The base sees one big batch; at each site the layer sees it
as [N, rows, in] and adds each adapter's own update by batched matrix products. The sum over adapters of their mean
losses has independent gradients, so every adapter trains as if it were alone.

All trained parameters lie in one buffer [N, P]: an optimiser is a handful of operations on it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorascope.adapter import Adapter, Provenance, Update
from lorascope.errors import ForgeError
from lorascope.forge.coupling import refuse_mixing_layers
from lorascope.forge.dropout import Dropout
from lorascope.forge.kind import Evidence, Initial, Kind, Parameters
from lorascope.forge.launch import placed
from lorascope.forge.layer import SiteLayer, layer_at, replaced_forwards
from lorascope.forge.slot import Slot

Place = tuple[str, str]
"""A site and the name of a parameter there."""


class AdapterStack:
    """N adapters of one kind at the sites of one base.

    Args:
        base: any ``nn.Module``; its parameters are not touched and need no gradient.
        sites: names of submodules, each of a class that ``kind`` can adapt.
        slots: the adapters.
        kind: how they adapt a layer; the name of a kind or itself.
        evidence: for kinds that look at data before they start: number of a slot → what is known at each site, as
            ``lorascope.forge.evidence`` gathers it.

    Raises:
        ForgeError: where a site is not in the base or cannot be adapted, or evidence is needed and not given.
        LorascopeError: for an unknown name of a kind.
    """

    def __init__(
        self,
        base: nn.Module,
        sites: Sequence[str],
        slots: Sequence[Slot],
        kind: Kind | str,
        *,
        evidence: Callable[[int], Evidence] | None = None,
    ) -> None:
        if isinstance(kind, str):
            from lorascope.forge.kinds import KINDS  # which are built on what is here

            kind = KINDS[kind]
        modules = dict(base.named_modules())
        self.base, self.slots, self.kind = base, tuple(slots), kind
        self.layers: dict[str, SiteLayer] = {}
        for site in sites:
            if site not in modules:
                raise ForgeError("the base has no such layer", key=site, expected="a module path of the base")
            self.layers[site] = layer_at(site, modules[site])
            kind.check(self.layers[site])
        if not self.slots or not self.layers:
            raise ForgeError("there is nothing to train", expected="at least one site and one adapter")
        kind.check_together(self.slots)
        if kind.needs != "nothing" and evidence is None:
            raise ForgeError(
                f"the kind {kind.name} looks at {kind.needs} before it starts, and none were given", key="evidence"
            )
        first = [self._initial(slot, {} if evidence is None else evidence(n)) for n, slot in enumerate(self.slots)]
        self._shapes = _largest([dict(_places(initial, "trained")) for initial in first])
        self.values, self.padding = self._filled(first)
        self.fixed = _held([dict(_places(initial, "fixed")) for initial in first])
        self._bind()
        self.state = kind.state(self)

    def _initial(self, slot: Slot, evidence: Evidence) -> dict[str, Initial]:
        generator = torch.Generator().manual_seed(slot.init_seed)
        return self.kind.initialise(list(self.layers.values()), slot, generator, evidence)

    def _filled(self, first: Sequence[Mapping[str, Initial]]) -> tuple[Tensor, Tensor | None]:
        """The buffer [N, P] with the initial values, and where it holds parameters; None where it does everywhere."""
        like = next(part for initial in first for _, part in _places(initial, "trained"))
        values = like.new_zeros(len(first), sum(math.prod(shape) for shape in self._shapes.values()))
        is_there = torch.zeros_like(values, dtype=torch.bool)
        for number, initial in enumerate(first):
            own = dict(_places(initial, "trained"))
            for place, start, shape in self._columns():
                if place not in own:
                    continue
                part = (slice(None), *(slice(size) for size in own[place].shape))
                columns = slice(start, start + math.prod(shape))
                values[number : number + 1, columns].view(1, *shape)[part] = own[place]
                is_there[number : number + 1, columns].view(1, *shape)[part] = True
        return values, None if bool(is_there.all()) else is_there

    def _columns(self) -> Iterator[tuple[Place, int, tuple[int, ...]]]:
        start = 0
        for place, shape in self._shapes.items():
            yield place, start, shape
            start += math.prod(shape)

    def _bind(self) -> None:
        """Make the parameters views of the buffer."""
        count = len(self.slots)
        self.scale = self.values.new_tensor([self.kind.scale(slot) for slot in self.slots]).view(-1, 1, 1)
        self.dropout = Dropout(self.slots)
        self.parameters: dict[str, dict[str, Tensor]] = {site: {} for site in self.layers}
        for (site, name), start, shape in self._columns():
            value = self.values[:, start : start + math.prod(shape)].view(count, *shape)
            self.parameters[site][name] = value.requires_grad_()
        self.is_called = dict.fromkeys(self.layers, False)
        self.of_this_step: Parameters = {}

    def begin(self, step: int, part: int) -> None:
        """Draw what is random in one part of one step."""
        self.dropout.begin(step, part)
        self.of_this_step = self.kind.of_step(self.slots, step)

    def named(self, name: str) -> Iterator[tuple[str, Tensor, slice]]:
        """Site, value [N, …] and columns of ``values`` of the trained parameters of that name."""
        for (site, own), start, shape in self._columns():
            if own == name:
                yield site, self.parameters[site][own], slice(start, start + math.prod(shape))

    @property
    def leaves(self) -> list[Tensor]:
        """The trained parameters, in the order of the columns of ``values``."""
        return [self.parameters[site][name] for (site, name), _, _ in self._columns()]

    def rates(self) -> Tensor | None:
        """Learning rates of single parameters as multiples [N, P] of the adapter's own; None where all are 1."""
        multiples = [self.kind.rates(slot) for slot in self.slots]
        if not any(multiples):
            return None
        rates = torch.ones_like(self.values)
        for (_, name), start, shape in self._columns():
            for number, own in enumerate(multiples):
                rates[number, start : start + math.prod(shape)] = own.get(name, 1.0)
        return rates

    @contextmanager
    def attached(self, *, is_training: bool = False) -> Iterator[Callable[..., Any]]:
        """The base with all N adapters on, as a function of a batch [N · b, …]; afterwards it is as before.

        The function takes its inputs from any device, and gives outputs on that of the base.

        Args:
            is_training: whether dropout is on.

        Raises:
            ForgeError: where the base has a layer in training mode that would mix the adapters of a batch.
        """
        refuse_mixing_layers(self.base)
        with replaced_forwards(self.layers.values(), lambda layer: self._adapted(layer, is_training)):
            yield self._called_with_placed

    def _called_with_placed(self, *args: Any, **kwargs: Any) -> Any:
        device = self.values.device
        if device.type != "cpu":
            args, kwargs = placed((args, kwargs), device)
        return self.base(*args, **kwargs)

    def _adapted(self, layer: SiteLayer, is_training: bool) -> Callable[[Tensor], Tensor]:
        count, site = len(self.slots), layer.site
        parameters = self.parameters[site] | self.fixed.get(site, {})
        is_dropping = is_training and not self.dropout.is_off

        def forward(x: Tensor) -> Tensor:
            self.is_called[site] = True
            if x.shape[0] % count:
                raise ForgeError(
                    "the batch is not a whole number of examples for each adapter",
                    key=site,
                    expected=f"a multiple of {count}",
                    found=x.shape[0],
                )
            seen = self.dropout(x) if is_dropping else x
            now = {**parameters, **self.of_this_step} if is_training else parameters
            return self.kind.forward(layer, x, seen, now, self.scale)

        return forward

    def adapter(self, number: int, provenance: Provenance | None = None) -> Adapter:
        """The adapter of one slot, as it is now."""
        sites: dict[str, Update] = {}
        for site, layer in self.layers.items():
            parameters = self.parameters[site] | self.fixed.get(site, {})
            own = {name: value.detach()[number].cpu() for name, value in parameters.items()}
            sites[site] = self.kind.export(layer, own, self.slots[number])
        return Adapter(sites, provenance or Provenance(kind=self.kind.name))

    def is_finite(self, number: int) -> bool:
        """Whether no parameter of the adapter has become NaN or infinite."""
        return bool(torch.isfinite(self.values[number]).all())

    def subset(self, numbers: Sequence[int]) -> AdapterStack:
        """A stack of some of the adapters, with copies of their values."""
        chosen = copy.copy(self)
        chosen.slots = tuple(self.slots[number] for number in numbers)
        index = torch.tensor(list(numbers), device=self.values.device)
        chosen.values = self.values.detach()[index].clone()
        chosen.padding = None if self.padding is None else self.padding[index]
        chosen.fixed = {
            site: {name: _rows_of(value, index) for name, value in named.items()} for site, named in self.fixed.items()
        }
        chosen._bind()
        chosen.state = {name: value[index] for name, value in self.state.items()}
        return chosen


def _rows_of(value: Tensor, index: Tensor) -> Tensor:
    is_shared = value.stride(0) == 0
    return value[:1].expand(len(index), *value.shape[1:]) if is_shared else value[index]


def _places(initial: Mapping[str, Initial], part: str) -> list[tuple[Place, Tensor]]:
    return [((site, name), value) for site, own in initial.items() for name, value in getattr(own, part).items()]


def _largest(parts: Sequence[Mapping[Place, Tensor]]) -> dict[Place, tuple[int, ...]]:
    shapes: dict[Place, tuple[int, ...]] = {}
    for part in parts:
        for place, value in part.items():
            shapes[place] = tuple(map(max, shapes.get(place, value.shape), value.shape))
    return shapes


def _held(parts: Sequence[Mapping[Place, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """What is not trained: site → name → [N, …]; once for all where it is one object."""
    held: dict[str, dict[str, Tensor]] = {}
    for (site, name), shape in _largest(parts).items():
        tensors = {number: part[site, name] for number, part in enumerate(parts) if (site, name) in part}
        first = next(iter(tensors.values()))
        if len(tensors) == len(parts) and all(tensor is first for tensor in tensors.values()):
            value = first.expand(len(parts), *shape)
        else:
            value = first.new_zeros(len(parts), *shape)
            for number, tensor in tensors.items():
                value[(number, *(slice(size) for size in tensor.shape))] = tensor
        held.setdefault(site, {})[name] = value
    return held
