"""A published BERT with a head for masked words: what is found, what is made, and where it is cut.

    texts → embeddings, layers 0 … first − 1 → states (once for each text)
    states → layers first … → the states at the masked places → dense, GELU, norm → · Eᵀ + bias → scores of tokens

Adapters are on the upper layers, so the lower ones give the same states for all of them, and are run once. The
module paths are those of the published ``BertModel``. Decoding is tied to its word embeddings E (Devlin et al.,
arXiv 1810.04805), for the tokens that occur in the texts; only the dense layer, the norm and the bias are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Published:
    """A BERT and its tokens.

    Args:
        model: ``BertModel``, frozen.
        encode: text, most tokens → tokens, the first and last of which are never masked.
        mask: the token that stands for a masked one; padding is token 0.
    """

    model: Any
    encode: Callable[[str, int], list[int]]
    mask: int


class Head(nn.Module):
    """States [n, width] → scores [n, tokens] of the tokens whose embeddings are given."""

    embeddings: Tensor

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        width = embeddings.shape[1]
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(len(embeddings)))
        self.register_buffer("embeddings", embeddings, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(states))), self.embeddings, self.bias)


class MaskedBert(nn.Module):
    """The layers from ``first`` on and the head; ``lower`` runs those before.

    Args:
        published: a ``BertModel``; its submodules are taken, not copied.
        first: the lowest layer that adapters are on.
        vocabulary: the tokens that are scored.
    """

    def __init__(self, published: Any, first: int, vocabulary: Sequence[int]) -> None:
        super().__init__()
        self.embeddings, self.encoder, self.first = published.embeddings, published.encoder, first
        self.head = Head(published.embeddings.word_embeddings.weight.detach()[list(vocabulary)])

    def lower(self, tokens: Tensor) -> Tensor:
        """Tokens [n, L], padding zero → states [n, L, width] below layer ``first``."""
        with torch.no_grad():
            states = self.embeddings(input_ids=tokens)
            return self._through(self.encoder.layer[: self.first], states, tokens != 0)

    def forward(self, states: Tensor, is_token: Tensor, places: Tensor) -> Tensor:
        """States [n, L, width], is_token [n, L], places [n, K] → scores [n, K, tokens]."""
        return self.head(self.upper(states, is_token, places))

    def upper(self, states: Tensor, is_token: Tensor, places: Tensor) -> Tensor:
        """The last layer's states at the places, [n, K, width]."""
        *layers, last = self.encoder.layer[self.first :]
        states = self._through(layers, states, is_token)
        states = last.attention(states, attention_mask=_added(is_token, states))[0]
        # behind the last attention no place sees another, so the rest is run where it is asked for
        states = states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        return last.output(last.intermediate(states), states)

    def _through(self, layers: Iterable[Any], states: Tensor, is_token: Tensor) -> Tensor:
        for layer in layers:
            states = layer(states, attention_mask=_added(is_token, states))
        return states


def _added(is_token: Tensor, states: Tensor) -> Tensor:
    """A mask that is added to the scores, as every implementation of attention in transformers takes it."""
    least = torch.finfo(states.dtype).min
    return torch.where(is_token, 0.0, least).to(states.dtype)[:, None, None, :]
