"""A published causal language model as a base: how likely it holds what comes next, at the places that are asked for.

    tokens → layers → states → the states before the targets → scores → log p of each target

Sequences are padded behind. No token sees a later one, so padding changes nothing before it, and no mask of it is
needed. Scores, one for each token of the vocabulary, are taken where there is a target and nowhere else. The
submodules and their paths are those of the published model, so adapters load into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NO_TARGET = -100


class Sequences(NamedTuple):
    """Tokens [n, L], and of what is asked for the places before it [n, K] and itself [n, K] (or ``NO_TARGET``)."""

    tokens: Tensor
    places: Tensor
    targets: Tensor


def padded(sequences: Sequence[tuple[Sequence[int], int]]) -> Sequences:
    """Sequences of tokens, each with the number of those that are given; the others are asked for.

    >>> padded([([5, 6, 7], 1), ([8, 9], 1)])
    Sequences(tokens=tensor([[5, 6, 7], [8, 9, 0]]), places=tensor([[0, 1], [0, 0]]),
              targets=tensor([[   6,    7], [   9, -100]]))
    """
    length = max(len(tokens) for tokens, _ in sequences)
    most = max(len(tokens) - given for tokens, given in sequences)
    all_tokens = torch.zeros(len(sequences), length, dtype=torch.long)
    places = torch.zeros(len(sequences), most, dtype=torch.long)
    targets = torch.full((len(sequences), most), NO_TARGET)
    for row, (tokens, given) in enumerate(sequences):
        asked = len(tokens) - given
        all_tokens[row, : len(tokens)] = torch.tensor(tokens)
        places[row, :asked] = torch.arange(given - 1, len(tokens) - 1)
        targets[row, :asked] = torch.tensor(tokens[given:])
    return Sequences(all_tokens, places, targets)


class Judged(NamedTuple):
    """Of each target [n, K] its log p, and whether nothing is likelier; zero and false where there is none."""

    log_p: Tensor
    is_best: Tensor


class CausalLM(nn.Module):
    """A whole ``…ForCausalLM`` of transformers; its submodules are taken, not copied."""

    def __init__(self, published: Any) -> None:
        super().__init__()
        self.model, self.lm_head = published.model, published.lm_head

    def forward(self, tokens: Tensor, places: Tensor, targets: Tensor) -> Judged:
        """Sequences, with the targets' own numbers → ``Judged``."""
        states = self.model(input_ids=tokens, use_cache=False, return_dict=True).last_hidden_state
        return judged(self.lm_head, states, places, targets)


class CutLlama(nn.Module):
    """A ``LlamaForCausalLM`` from layer ``first`` on; ``lower`` runs the layers before, once for each text.

    Args:
        published: the model, with its output tied to its embeddings; its submodules are taken, not copied.
        first: the lowest layer that adapters are on.
        vocabulary: the tokens that are scored; targets are numbers in it.
    """

    rows: Tensor

    def __init__(self, published: Any, first: int, vocabulary: Sequence[int]) -> None:
        super().__init__()
        self.model, self.first = published.model, first
        self.register_buffer("rows", published.lm_head.weight.detach()[list(vocabulary)], persistent=False)

    def lower(self, tokens: Tensor) -> Tensor:
        """Tokens [n, L] → states [n, L, width] below layer ``first``."""
        with torch.no_grad():
            return self._through(self.model.layers[: self.first], self.model.embed_tokens(tokens))

    def forward(self, states: Tensor, places: Tensor, targets: Tensor) -> Judged:
        """States [n, L, width] below layer ``first`` → ``Judged`` among the vocabulary."""
        states = self._through(self.model.layers[self.first :], states)
        return judged(lambda chosen: F.linear(chosen, self.rows), self.model.norm(states), places, targets)

    def _through(self, layers: Iterable[Any], states: Tensor) -> Tensor:
        positions = torch.arange(states.shape[1], device=states.device).unsqueeze(0)
        rotary = self.model.rotary_emb(states, position_ids=positions)
        # added to the scores, as every implementation of attention in transformers takes it
        is_later = positions.T < positions
        mask = torch.where(is_later, torch.finfo(states.dtype).min, 0.0).to(states.dtype)[None, None]
        for layer in layers:
            states = layer(states, attention_mask=mask, position_embeddings=rotary, position_ids=positions)
        return states


def judged(head: Callable[[Tensor], Tensor], states: Tensor, places: Tensor, targets: Tensor) -> Judged:
    """States [n, L, width] and a head that gives the scores of a vocabulary → log p of the targets [n, K].

    The softmax is taken in float32 at least, also of a model in bfloat16.
    """
    is_target = targets != NO_TARGET
    row = torch.arange(len(states), device=states.device).unsqueeze(1).expand_as(places)
    scores = head(states[row[is_target], places[is_target]])
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    wanted = targets[is_target]
    log_p = scores.new_zeros(targets.shape)
    log_p[is_target] = -F.cross_entropy(scores, wanted, reduction="none")
    is_best = torch.zeros_like(is_target)
    is_best[is_target] = scores.detach().argmax(-1) == wanted
    return Judged(log_p, is_best)


def mean_loss(log_p: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each sequence, a mean over its targets: [n, K] → [n]."""
    return -log_p.sum(1) / (targets != NO_TARGET).sum(1)
