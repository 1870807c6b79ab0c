"""The network of ``probes``; apart because it needs PyTorch to be defined."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorascope.features.side import FLOOR
from lorascope.predict.models._layers import Columns, WideHead, blocks_of_batch, triangle
from lorascope.predict.models._singular import SiteGroup
from lorascope.predict.models._spectrum import MagnitudeHead, Spectra, ZeroLinear
from lorascope.predict.neural import Dropout
from lorascope.predict.training import Batch


class Responses(torch.nn.Module):
    """What the sites of one shape answer to learned inputs, as seen by learned read-outs."""

    def __init__(self, group: SiteGroup, probes: int, read_outs: int) -> None:
        super().__init__()
        self.probes = torch.nn.Parameter(torch.empty(group.sites, group.in_, probes))
        self.read_outs = torch.nn.Parameter(torch.empty(group.sites, read_outs, group.out))
        self.width = probes * read_outs + read_outs * (read_outs + 1) // 2

    def initialise(self, generator: torch.Generator) -> None:
        """Normal entries; a read-out keeps the mean square of a response."""
        self.probes.normal_(generator=generator)
        self.read_outs.normal_(generator=generator).mul_(self.read_outs.shape[-1] ** -0.5)

    def forward(self, U: torch.Tensor, S: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
        """[n, sites, width] from U [n, sites, out, k], S [n, sites, k], V [n, sites, in, k]."""
        coordinates = S[..., None] * (V.mT @ self.probes)
        # U has orthonormal columns, so these are the norms of the responses themselves
        energy = coordinates.square().sum((-2, -1), keepdim=True)
        seen = (self.read_outs @ U) @ (coordinates * torch.rsqrt(energy + FLOOR * FLOOR))
        return torch.cat([seen.flatten(2), triangle(seen @ seen.mT)], dim=-1)


class ProbesNetwork(torch.nn.Module):
    """A linear map and a perceptron on standardised responses, plus a perceptron on the spectra."""

    def __init__(
        self,
        groups: Sequence[SiteGroup],
        *,
        probes: int,
        read_outs: int,
        hidden: int,
        dropout: float,
        outputs: int,
    ) -> None:
        super().__init__()
        responses = [Responses(group, probes, read_outs) for group in groups]
        self.responses = torch.nn.ModuleList(responses)
        self.columns = Columns(sum(group.sites * each.width for group, each in zip(groups, responses, strict=True)))
        self.drop = Dropout(dropout)
        columns = self.columns.get_buffer("mean").numel()
        self.head = WideHead(columns, outputs)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(columns, hidden),
            torch.nn.LayerNorm(hidden),
            torch.nn.ReLU(),
            Dropout(dropout),
            ZeroLinear(hidden, outputs),
        )
        self.spectra = Spectra(sum(group.sites for group in groups))
        self.magnitude = MagnitudeHead(self.spectra.width, hidden, outputs)

    def _raw(self, batch: Batch) -> torch.Tensor:
        parts = [each(*(batch[f"{name}{i}"] for name in "USV")) for i, each in enumerate(self.responses)]
        return torch.cat([part.flatten(1) for part in parts], dim=-1)

    @torch.no_grad()
    def calibrate(self, batch: Batch) -> None:
        """Take the statistics of the training inputs."""
        self.columns.calibrate((self._raw(block), 1.0) for block in blocks_of_batch(batch))
        self.spectra.calibrate(batch)

    def forward(self, batch: Batch) -> torch.Tensor:
        """[n, outputs]."""
        x = self.drop(self.columns(self._raw(batch)))
        return self.head(x) + self.layers(x) + self.magnitude(self.spectra(batch))
