"""``Block``: one pre-norm transformer block (Xiong et al., arXiv 2002.04745) over few tokens, for bases of recipes.

x + attention(norm x), then x + mlp(norm x); every projection is its own ``nn.Linear``, so that each is a site
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PROJECTIONS = ("q", "k", "v", "o", "fc1", "fc2")
"""The linear layers of a block: the sites of its adapters."""


class Block(nn.Module):
    """Tokens [n, tokens, width] → the same, with all tokens attending to all.

    Args:
        width: of a token.
        hidden: of the perceptron.
        heads: of the attention.
    """

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (self._in_heads(projection(y)) for projection in (self.q, self.k, self.v))
        # spelled out: over few tokens on a CPU this is faster than the fused attention, and than torch.softmax
        scores = torch.bmm(q, k.transpose(1, 2)) * q.shape[-1] ** -0.5
        weights = (scores - scores.detach().amax(-1, keepdim=True)).exp()
        mixed = torch.bmm(weights / weights.sum(-1, keepdim=True), v)  # [n · heads, tokens, width / heads]
        x = x + self.o(mixed.view(len(x), self.heads, *mixed.shape[1:]).transpose(1, 2).flatten(2))
        return x + self.fc2(F.relu(self.fc1(self.norm2(x))))

    def _in_heads(self, x: Tensor) -> Tensor:
        """[n, tokens, width] → [n · heads, tokens, width / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)
