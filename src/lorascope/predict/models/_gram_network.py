"""The network of ``gram``; apart because it needs PyTorch to be defined."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorascope.features.side import FLOOR, filter_values
from lorascope.predict.models._attention import SiteAttention
from lorascope.predict.models._layers import Columns, LearnedProjections, WideHead, blocks_of_batch, triangle
from lorascope.predict.models._singular import SiteGroup
from lorascope.predict.models._spectrum import MagnitudeHead, Spectra
from lorascope.predict.neural import Dropout
from lorascope.predict.training import Batch


class GramTokens(LearnedProjections):
    """The invariants of the sites of one shape, in learned coordinates: left, right and cross."""

    def __init__(self, group: SiteGroup, size: int, delta: float) -> None:
        super().__init__(group, size)
        self.delta = delta

    def forward(self, U: torch.Tensor, S: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
        """[n, sites, width] from U [n, sites, out, k], S [n, sites, k], V [n, sites, in, k]."""
        left, right = self.P @ U, self.Q @ V
        weight = filter_values(S, self.delta)[..., None, :]
        relative = (S * torch.rsqrt(S.square().sum(-1, keepdim=True) + FLOOR * FLOOR))[..., None, :]
        sides = [triangle((side * weight) @ side.mT) for side in (left, right)]
        return torch.cat([*sides, ((left * relative) @ right.mT).flatten(2)], dim=-1)


class GramNetwork(torch.nn.Module):
    """Standardised tokens to a linear map or attention over sites, plus a perceptron on the spectra."""

    def __init__(
        self,
        groups: Sequence[SiteGroup],
        *,
        size: int,
        delta: float,
        head: str,
        width: int,
        hidden: int,
        dropout: float,
        outputs: int,
    ) -> None:
        super().__init__()
        tokens = [GramTokens(group, size, delta) for group in groups]
        self.tokens = torch.nn.ModuleList(tokens)
        self.columns = torch.nn.ModuleList(
            Columns(group.sites, each.width) for group, each in zip(groups, tokens, strict=True)
        )
        self.drop = Dropout(dropout)
        self.attention = self.linear = None
        if head == "attention":
            widths = [(group.sites, each.width) for group, each in zip(groups, tokens, strict=True)]
            self.attention = SiteAttention(widths, width, dropout, outputs)
        else:
            total = sum(group.sites * each.width for group, each in zip(groups, tokens, strict=True))
            self.linear = WideHead(total, outputs)
        self.spectra = Spectra(sum(group.sites for group in groups))
        self.magnitude = MagnitudeHead(self.spectra.width, hidden, outputs)

    def _raw(self, batch: Batch) -> list[torch.Tensor]:
        return [self._tokens(batch, i) for i in range(len(self.tokens))]

    def _tokens(self, batch: Batch, i: int) -> torch.Tensor:
        return self.tokens[i](*(batch[f"{name}{i}"] for name in "USV"))

    @torch.no_grad()
    def calibrate(self, batch: Batch) -> None:
        """Take the statistics of the training inputs."""
        for i, columns in enumerate(self.columns):
            assert isinstance(columns, Columns)
            columns.calibrate((self._tokens(block, i), 1.0) for block in blocks_of_batch(batch))
        self.spectra.calibrate(batch)

    def forward(self, batch: Batch) -> torch.Tensor:
        """[n, outputs]."""
        tokens = [self.drop(columns(raw)) for columns, raw in zip(self.columns, self._raw(batch), strict=True)]
        magnitude = self.magnitude(self.spectra(batch))
        if self.attention is not None:
            return self.attention(tokens) + magnitude
        assert self.linear is not None
        return self.linear(torch.cat([part.flatten(1) for part in tokens], dim=-1)) + magnitude
