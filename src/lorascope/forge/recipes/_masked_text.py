"""``Texts``: the texts of all sources, divided, in tokens and with masks drawn once for all.

A quarter of the tokens of a text is masked, one at least and three at most, in ``VARIANTS`` ways; each of them is one
example. The masks of an example are a pure function of its text, so the states below the adapted layers are too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lorascope.forge.recipes._dialogue import Divided, arranged
from lorascope.forge.recipes._masked_bert import MaskedBert, Published
from lorascope.forge.space import generator_of
from lorascope.zoo.schema import SPLITS

LENGTH, PLACES, VARIANTS, SHARE = 12, 3, 2, 0.25
NO_TARGET = -100
_CHUNK = 64  # examples whose lower layers run at once: it is fixed, since products of other shapes round otherwise


class Examples(NamedTuple):
    """Masked tokens [n, L], places [n, K] and what stands there, as numbers in the vocabulary [n, K] (or none)."""

    tokens: Tensor
    places: Tensor
    targets: Tensor

    def of(self, numbers: Tensor) -> Examples:
        """Some of the examples."""
        return Examples(self.tokens[numbers], self.places[numbers], self.targets[numbers])


class Texts:
    """All examples. Those of one text stand together, so text t has the examples t · VARIANTS + v.

    Attributes:
        vocabulary: the tokens that occur.
        examples: of the pools, and after them of the texts that are held out.
        pools: split → for each source the numbers of its texts.
        source_of: for each text the number of its source.
        encode, mask: of the published model.
        held_out: the numbers of the examples that are measured on: the first variant of each text.
        rest: the examples of all other texts, to make the head on.
    """

    def __init__(self, sources: Sequence[Divided], published: Published) -> None:
        def encoded(texts: Sequence[str]) -> list[list[int]]:
            return [published.encode(text, LENGTH) for text in texts]

        texts, self.pools, held_out = arranged(sources)
        rest = [text for source in sources for text in source.rest]
        kept, others = encoded(texts), encoded(rest)
        self.encode, self.mask = published.encode, published.mask
        self.vocabulary = sorted({token for tokens in kept + others for token in tokens})
        number_of = {token: number for number, token in enumerate(self.vocabulary)}
        self.examples = _masked(texts, kept, number_of, published.mask)
        self.rest = _masked(rest, others, number_of, published.mask)
        self.held_out = torch.tensor(held_out) * VARIANTS
        sizes = [len(source.pools[split]) for split in SPLITS for source in sources]
        sizes += [len(source.held_out) for source in sources]
        self.source_of = np.repeat(np.arange(len(sizes)) % len(sources), sizes)


@lru_cache(maxsize=1)
def states_of(base: MaskedBert, texts: Texts) -> Tensor:
    """The states [n, L, width] of all examples below the adapted layers, computed once for a process."""
    return lower_states(base, texts.examples.tokens)


def lower_states(base: MaskedBert, tokens: Tensor) -> Tensor:
    """Tokens [n, L] → their states below the adapted layers, [n, L, width]."""
    device = next(base.parameters()).device
    return torch.cat([base.lower(chunk.to(device)).cpu() for chunk in tokens.split(_CHUNK)])


def _masked(texts: Sequence[str], encoded: Sequence[list[int]], number_of: dict[int, int], mask: int) -> Examples:
    count = len(texts) * VARIANTS
    tokens = torch.zeros(count, LENGTH, dtype=torch.long)
    places = torch.ones(count, PLACES, dtype=torch.long)
    targets = torch.full((count, PLACES), NO_TARGET)
    for number, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
        within = len(ids) - 2
        chosen = min(PLACES, max(1, round(SHARE * within)))
        for variant in range(VARIANTS):
            row = number * VARIANTS + variant
            at = 1 + generator_of("masked", text, variant).permutation(within)[:chosen]
            tokens[row, : len(ids)] = torch.tensor(ids)
            targets[row, :chosen] = torch.tensor([number_of[ids[place]] for place in at])
            places[row, :chosen] = torch.from_numpy(at)
            tokens[row, at] = mask
    return Examples(tokens, places, targets)
