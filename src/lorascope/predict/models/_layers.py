"""Layers that the networks on singular vectors share, and how such a network gets its initial parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from lorascope.predict.models._singular import SiteGroup
from lorascope.predict.neural import Dropout, floored
from lorascope.predict.training import Batch

BLOCK = 64


def initialised(build: Callable[[], torch.nn.Module], generator: torch.Generator) -> torch.nn.Module:
    """The network with storage and initial parameters, all drawn from ``generator``; no global state is touched.

    Modules with parameters or buffers of their own have ``initialise(generator)``; otherwise linear layers are
    uniform ±1/√incoming and LayerNorm is the identity.
    """
    with torch.device("meta"):
        network = build()
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for module in network.modules():
            if initialise := getattr(module, "initialise", None):
                initialise(generator)
            elif isinstance(module, Dropout):
                module.generator = generator
            elif isinstance(module, torch.nn.Linear):
                for parameter in module.parameters():
                    parameter.uniform_(-1, 1, generator=generator).mul_(module.in_features**-0.5)
            elif isinstance(module, torch.nn.LayerNorm):
                module.reset_parameters()
    return network


def blocks_of_batch(batch: Batch) -> Iterator[Batch]:
    """64 adapters at a time: a layer's values at all training adapters can be larger than these themselves."""
    for start in range(0, len(next(iter(batch.values()))), BLOCK):
        yield {name: tensor[start : start + BLOCK] for name, tensor in batch.items()}


def orthonormal_rows(parameter: torch.Tensor, generator: torch.Generator) -> None:
    """Fill [sites, h, n] with random orthonormal rows, h ≤ n."""
    noise = torch.randn(parameter.mT.shape, generator=generator)
    parameter.copy_(torch.linalg.qr(noise).Q.mT)


def triangle(matrix: torch.Tensor) -> torch.Tensor:
    """The upper triangle of [..., h, h] in one axis of h(h+1)/2."""
    rows, columns = torch.triu_indices(*matrix.shape[-2:], device=matrix.device)
    return matrix[..., rows, columns]


class Columns(torch.nn.Module):
    """(x − mean) / spread, by statistics of training inputs.

    A column that varies less than a twentieth of the root mean square of its site's columns is not blown up.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("spread", torch.ones(shape))

    def initialise(self, generator: torch.Generator) -> None:
        """The identity."""
        self.get_buffer("mean").zero_()
        self.get_buffer("spread").fill_(1.0)

    @torch.no_grad()
    def calibrate(self, blocks: Iterable[tuple[torch.Tensor, torch.Tensor | float]]) -> None:
        """Take the statistics of blocks of (x [n, …, columns], weight of its entries), summed in float64.

        Axes of length 1 in a sample's statistics are summed over, as the samples are.
        """
        shape = self.get_buffer("mean").shape
        total, first, second = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        for x, weight in blocks:
            x = x.double()
            weight = torch.as_tensor(weight, dtype=torch.float64).expand_as(x)
            for sum_, part in ((total, weight), (first, weight * x), (second, weight * x * x)):
                sum_ += part.sum(0).sum_to_size(shape)
        total = total.clamp_min(torch.finfo(torch.float64).tiny)
        mean = first / total
        spread = (second / total - mean * mean).clamp_min(0.0).sqrt()
        self.get_buffer("mean").copy_(mean)
        self.get_buffer("spread").copy_(floored(spread))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape of x."""
        return (x - self.get_buffer("mean")) / self.get_buffer("spread")


class LearnedProjections(torch.nn.Module):
    """P [sites, h, out] and Q [sites, h′, in], learned for the sites of one shape; h = min(``size``, out)."""

    def __init__(self, group: SiteGroup, size: int) -> None:
        super().__init__()
        out, in_ = min(size, group.out), min(size, group.in_)
        self.P = torch.nn.Parameter(torch.empty(group.sites, out, group.out))
        self.Q = torch.nn.Parameter(torch.empty(group.sites, in_, group.in_))
        self.width = out * (out + 1) // 2 + in_ * (in_ + 1) // 2 + out * in_
        """Of what they make of a site: two symmetric matrices and one between the sides."""

    def initialise(self, generator: torch.Generator) -> None:
        """Random orthonormal rows."""
        orthonormal_rows(self.P, generator)
        orthonormal_rows(self.Q, generator)


class SiteLinear(torch.nn.Module):
    """x W + b with a W and b for each site; standardised x gives mean square 1 at the start."""

    def __init__(self, sites: int, columns: int, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(sites, columns, width))
        self.bias = torch.nn.Parameter(torch.empty(sites, width))

    def initialise(self, generator: torch.Generator) -> None:
        """Normal entries of variance 1 / columns, no bias."""
        self.weight.normal_(generator=generator).mul_(self.weight.shape[1] ** -0.5)
        self.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, sites, …, width] from [n, sites, …, columns]."""
        return torch.einsum("ns...c,scd->ns...d", x, self.weight) + self.bias.unflatten(0, (-1, *[1] * (x.ndim - 3)))


class WideHead(torch.nn.Module):
    """Scores x W / √c + b of many standardised columns c; they start at 0.

    A step of Adam moves every entry of W by the learning rate, and a score by up to c times as much: without the
    root a head on 40,000 columns overshoots before one on 40 has begun.
    """

    def __init__(self, columns: int, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(columns, outputs))
        self.bias = torch.nn.Parameter(torch.empty(outputs))

    def initialise(self, generator: torch.Generator) -> None:
        """All zeros."""
        self.weight.zero_()
        self.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, outputs] from [n, columns]."""
        return x @ (self.weight * len(self.weight) ** -0.5) + self.bias
