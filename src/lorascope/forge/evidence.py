"""``gather``: what a kind looks at before it starts, on each adapter's own first examples.

    gradient    G = ∂ mean loss / ∂ W  [out, in] at the base
    inputs      M = Σ x xᵀ             [in, in] over the rows that the layer sees

One adapter at a time, so that no more than one matrix per site is held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lorascope.forge.kind import Evidence, Kind
from lorascope.forge.launch import placed
from lorascope.forge.layer import SiteLayer, layer_at, refuse_uncalled, replaced_forwards
from lorascope.forge.training import Batches, Loss

STEPS = 4
"""Steps whose first part is looked at."""


def gather(
    base: nn.Module, sites: Sequence[str], kind: Kind, batches: Batches, loss: Loss, count: int, *, steps: int = STEPS
) -> Callable[[int], Evidence] | None:
    """The evidence of each of ``count`` adapters as ``AdapterStack`` takes it; None where the kind needs none.

    Args:
        batches: the data of all adapters, as they will be trained on.
        steps: how many of the first steps are looked at.

    Raises:
        ForgeError: by what is returned, where the base does not call the layer at a site.
    """
    if kind.needs == "nothing":
        return None
    layers = [layer_at(site, base.get_submodule(site)) for site in sites]

    def evidence(number: int) -> dict[str, Tensor]:
        of_each: dict[str, Tensor] = {}
        with replaced_forwards(layers, lambda layer: _watching(layer, kind.needs, of_each)):
            for step in range(steps):
                own = tree_map(lambda value: _own(value, number, count), batches(step, 0))
                inputs, targets = placed(own, layers[0].device)
                with torch.set_grad_enabled(kind.needs == "gradient"):
                    outputs = base(**inputs) if isinstance(inputs, dict) else base(inputs)
                refuse_uncalled({layer.site: layer.site in of_each for layer in layers})
                if kind.needs == "gradient":
                    probes = list(of_each.values())
                    mean = loss(outputs, targets).mean() / steps
                    for probe, gradient in zip(probes, torch.autograd.grad(mean, probes), strict=True):
                        probe.grad = gradient if probe.grad is None else probe.grad + gradient
        if kind.needs == "gradient":
            return {site: probe.grad for site, probe in of_each.items() if probe.grad is not None}
        return of_each

    return evidence


def _own(value: Any, number: int, count: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    each = len(value) // count
    return value[number * each : (number + 1) * each]


def _watching(layer: SiteLayer, needs: str, of_each: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    out, in_ = layer.shape

    def forward(x: Tensor) -> Tensor:
        y = layer.base(x)
        rows = layer.rows(x, 1).to(layer.dtype)
        if needs == "gradient":
            probe = of_each.setdefault(layer.site, layer.zeros(out, in_).requires_grad_())
            return y + layer.place(torch.matmul(rows, probe.T), y)  # zero, but its gradient is that of the weight
        moments = of_each.setdefault(layer.site, layer.zeros(in_, in_))
        moments += rows[0].T @ rows[0]
        return y

    return forward
