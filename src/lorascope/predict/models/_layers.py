"""Layers that the networks on singular vectors share, and how such a network gets its initial parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lorascope.predict.neural import Dropout


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

    def take(self, mean: torch.Tensor, spread: torch.Tensor) -> None:
        """Take these statistics, of the shape of a sample."""
        floor = 0.05 * spread.square().mean(-1, keepdim=True).sqrt()
        self.get_buffer("mean").copy_(mean)
        self.get_buffer("spread").copy_(torch.where(floor > 0, spread.maximum(floor), torch.ones_like(spread)))

    def calibrate(self, x: torch.Tensor) -> None:
        """Take the statistics of x [n, …, columns]."""
        self.take(x.mean(0), x.std(0, correction=0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape of x."""
        return (x - self.get_buffer("mean")) / self.get_buffer("spread")


class WideLinear(torch.nn.Module):
    """y = x W / √c + b at each of some sites, for many standardised columns c.

    A step of Adam moves every entry of W by the learning rate, and y by up to c times as much: without the root a
    layer on 40,000 columns overshoots where one on 40 still crawls.
    """

    def __init__(self, sites: int, columns: int, width: int, *, zero: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(sites, columns, width))
        self.bias = torch.nn.Parameter(torch.empty(sites, width))
        self.zero = zero

    def initialise(self, generator: torch.Generator) -> None:
        """y with mean square 1, or 0."""
        self.bias.zero_()
        if self.zero:
            self.weight.zero_()
        else:
            self.weight.normal_(generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, sites, …, width] from [n, sites, …, columns]."""
        weight = self.weight * self.weight.shape[1] ** -0.5
        return torch.einsum("ns...c,scd->ns...d", x, weight) + self.bias.unflatten(0, (-1, *[1] * (x.ndim - 3)))
