"""Attention over the sites of an adapter, or over the directions of a site; apart because it needs PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorascope.predict.models._layers import SiteLinear, WideHead
from lorascope.predict.models._singular import HEADS
from lorascope.predict.neural import Dropout


class AttentionBlock(torch.nn.Module):
    """x + attention(LayerNorm x), then x + perceptron(LayerNorm x); tokens of weight 0 are not attended to."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.before = torch.nn.LayerNorm(width)
        self.queries = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)
        self.between = torch.nn.LayerNorm(width)
        self.perceptron = torch.nn.Sequential(
            torch.nn.Linear(width, 2 * width), torch.nn.GELU(), Dropout(dropout), torch.nn.Linear(2 * width, width)
        )
        self.drop = Dropout(dropout)

    def forward(self, x: torch.Tensor, log_weight: torch.Tensor | None = None) -> torch.Tensor:
        """[…, tokens, width]; ``log_weight`` […, tokens] is added to the logits of attention to each token."""
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(-2, -3) for part in self.queries(self.before(x)).chunk(3, dim=-1)
        )
        mask = None if log_weight is None else log_weight[..., None, None, :]
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.drop(self.out(attended.transpose(-2, -3).flatten(-2)))
        return x + self.drop(self.perceptron(self.between(x)))


class SiteAttention(torch.nn.Module):
    """Features of sites to scores: a linear map to a token each, one attention block, a linear map of all tokens."""

    def __init__(self, groups: Sequence[tuple[int, int]], width: int, dropout: float, outputs: int) -> None:
        super().__init__()
        self.embeddings = torch.nn.ModuleList(SiteLinear(sites, columns, width) for sites, columns in groups)
        self.block = AttentionBlock(width, dropout)
        self.after = torch.nn.LayerNorm(width)
        self.head = WideHead(width * sum(sites for sites, _ in groups), outputs)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """[n, outputs] from [n, sites, columns] for each group of (sites, columns)."""
        tokens = [embed(x) for embed, x in zip(self.embeddings, features, strict=True)]
        return self.head(self.after(self.block(torch.cat(tokens, dim=1))).flatten(1))
