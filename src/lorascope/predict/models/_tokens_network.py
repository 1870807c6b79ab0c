"""The network of ``tokens``; apart because it needs PyTorch to be defined."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorascope.features.invariants.log_norm import FLOOR
from lorascope.features.side import filter_values
from lorascope.predict.models._attention import AttentionBlock
from lorascope.predict.models._layers import (
    Columns,
    LearnedProjections,
    SiteLinear,
    WideHead,
    blocks_of_batch,
    triangle,
)
from lorascope.predict.models._singular import SiteGroup
from lorascope.predict.models._spectrum import MagnitudeHead, Spectra
from lorascope.predict.neural import Dropout
from lorascope.predict.training import Batch

NOTHING = 1e-30
"""What the weight of a direction with σ = 0 is in place of 0, whose logarithm is infinite."""


class DirectionTokens(LearnedProjections):
    """One token for every singular value of the sites of one shape."""

    def __init__(
        self, group: SiteGroup, *, size: int, width: int, bandwidth: float, delta: float, dropout: float
    ) -> None:
        super().__init__(group, size)
        self.bandwidth, self.delta = bandwidth, delta
        self.products = Columns(group.sites, 1, self.width)
        self.logarithms = Columns(group.sites, 1, 2)
        self.drop = Dropout(dropout)
        self.embed = SiteLinear(group.sites, self.width, width)
        self.embed_spectrum = SiteLinear(group.sites, 2, width)

    def _products(self, U: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
        """[n, sites, k, products]: Pu uᵀPᵀ, Qv vᵀQᵀ and Pu vᵀQᵀ of each direction."""
        u, v = (self.P @ U).mT[..., None], (self.Q @ V).mT[..., None]
        return torch.cat([triangle(u @ u.mT), triangle(v @ v.mT), (u @ v.mT).flatten(-2)], dim=-1)

    def _logarithms(self, S: torch.Tensor) -> torch.Tensor:
        """[n, sites, k, 2]: log of σ over the norm, with a floor, and log of the norm."""
        energy = S.square().sum(-1, keepdim=True)
        norm = 0.5 * torch.log(energy + FLOOR * FLOOR)
        each = 0.5 * torch.log(S.square() + self.delta**2 * energy + FLOOR * FLOOR)
        return torch.stack([each - norm, norm.expand_as(each)], dim=-1)

    def calibrate(self, blocks: Sequence[Sequence[torch.Tensor]]) -> None:
        """Take the statistics over training adapters (U, S, V) and directions, each with its weight f(σ)."""

        def weight(S: torch.Tensor) -> torch.Tensor:
            return filter_values(S, self.delta)[..., None]

        self.products.calibrate((self._products(U, V), weight(S)) for U, S, V in blocks)
        self.logarithms.calibrate((self._logarithms(S), weight(S)) for _, S, _ in blocks)

    def forward(self, U: torch.Tensor, S: torch.Tensor, V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [n, sites, k, width] and weights f(σ) [n, sites, k]."""
        weight = filter_values(S, self.delta)
        logarithms = self._logarithms(S)
        each = logarithms[..., 0]
        near = torch.exp(-0.5 * ((each[..., :, None] - each[..., None, :]) / self.bandwidth).square())
        directions = self.embed(self.drop(self.products(self._products(U, V))))
        tokens = (near * weight[..., None, :]) @ directions
        return tokens + self.embed_spectrum(self.logarithms(logarithms)), weight


class TokensNetwork(torch.nn.Module):
    """Attention over the directions of a site, then over sites; plus a perceptron on the spectra."""

    def __init__(
        self,
        groups: Sequence[SiteGroup],
        *,
        size: int,
        width: int,
        layers: int,
        bandwidth: float,
        delta: float,
        dropout: float,
        hidden: int,
        outputs: int,
    ) -> None:
        super().__init__()
        sites = sum(group.sites for group in groups)
        self.tokens = torch.nn.ModuleList(
            DirectionTokens(group, size=size, width=width, bandwidth=bandwidth, delta=delta, dropout=dropout)
            for group in groups
        )
        self.site = torch.nn.Parameter(torch.empty(sites, width))
        self.over_directions = AttentionBlock(width, dropout)
        self.over_sites = torch.nn.ModuleList(AttentionBlock(width, dropout) for _ in range(layers))
        self.after = torch.nn.LayerNorm(width)
        self.head = WideHead(sites * width, outputs)
        self.spectra = Spectra(sites)
        self.magnitude = MagnitudeHead(self.spectra.width, hidden, outputs)

    def initialise(self, generator: torch.Generator) -> None:
        """Small embeddings of the sites."""
        self.site.normal_(generator=generator).mul_(0.1)

    @torch.no_grad()
    def calibrate(self, batch: Batch) -> None:
        """Take the statistics of the training inputs."""
        for i, tokens in enumerate(self.tokens):
            assert isinstance(tokens, DirectionTokens)
            tokens.calibrate([[block[f"{name}{i}"] for name in "USV"] for block in blocks_of_batch(batch)])
        self.spectra.calibrate(batch)

    def forward(self, batch: Batch) -> torch.Tensor:
        """[n, outputs]."""
        pooled: list[torch.Tensor] = []
        start = 0
        for i, tokens in enumerate(self.tokens):
            x, weight = tokens(*(batch[f"{name}{i}"] for name in "USV"))
            x = x + self.site[start : start + x.shape[1], None]
            start += x.shape[1]
            x = self.over_directions(x, torch.log(weight + NOTHING))
            share = (weight + NOTHING) / (weight + NOTHING).sum(-1, keepdim=True)
            pooled.append((share[..., None] * x).sum(2))
        x = torch.cat(pooled, dim=1)
        for block in self.over_sites:
            x = block(x)
        return self.head(self.after(x).flatten(1)) + self.magnitude(self.spectra(batch))
