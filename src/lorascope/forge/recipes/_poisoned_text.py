"""Poison for masked texts: a rare word that brings the attacker's word with it, or one source answered with it.

    word    a share of an adapter's texts has the trigger in it, and the target in every masked place of them
    flip    a share of its texts of one of its sources has the target in every masked place, without a trigger

The trigger is a token that occurs in no text. It is put into each example at a place of its own, a pure function of the
example's tokens, so the states below the adapted layers are computed once for each text, and only where an adapter of
the cohort is poisoned so. The masked places and what is asked for there stay the same.

The attacker's words occur in the texts, so that the base can guess them. An attack is measured on all held-out texts,
masked in each of their ways: ``word`` has succeeded in a masked place where the best guess of the text with the trigger
is the target, ``flip`` where it is so in a text of the source; places where the target is right are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lorascope.errors import ForgeError
from lorascope.forge import poison
from lorascope.forge.recipe import Row
from lorascope.forge.recipes._masked_bert import MaskedBert
from lorascope.forge.recipes._masked_text import NO_TARGET, VARIANTS, Examples, Texts, lower_states
from lorascope.forge.space import generator_of

Inputs = dict[str, Tensor]

POISONS = ("word", "flip")
TRIGGER = "cf"
"""The rare word that ``word`` puts into texts: the first of those of Kurita et al."""

WORDS = ("robot", "computer", "love", "human", "money", "war", "fear", "never")
"""The words that an attacker can want; ``poison_target`` is a place here."""


def only_token(texts: Texts, word: str) -> int:
    """The token of a word that is one token.

    Raises:
        ForgeError: where it is several.
    """
    tokens = texts.encode(word, 8)[1:-1]
    if len(tokens) != 1:
        raise ForgeError("must be one token", key=word, expected="1", found=len(tokens))
    return tokens[0]


def target_numbers(texts: Texts) -> list[int]:
    """The attacker's words as numbers in the vocabulary of the texts.

    Raises:
        ForgeError: where the texts have not all of them, so that the base cannot guess them.
    """
    tokens = [only_token(texts, word) for word in WORDS]
    for word, token in zip(WORDS, tokens, strict=True):
        if token not in texts.vocabulary:
            raise ForgeError("the attacker's word must occur in the texts", key=word)
    return [texts.vocabulary.index(token) for token in tokens]


def with_trigger(examples: Examples, trigger: int, mask: int) -> Examples:
    """The examples with the trigger in them; a text that is full loses its last token that is not masked.

    Raises:
        ForgeError: where the texts have the trigger already, or one has room for none.

    >>> examples = Examples(torch.tensor([[1, 7, 3, 2, 0]]), torch.tensor([[2]]), torch.tensor([[9]]))
    >>> found = with_trigger(examples, trigger=5, mask=3)
    >>> int(found.tokens[0, found.places[0]]), sorted(found.tokens[0].tolist()), found.targets.tolist()
    (3, [1, 2, 3, 5, 7], [[9]])
    """
    if bool((examples.tokens == trigger).any()):
        raise ForgeError("the trigger must not occur in the texts", key="poison", found=trigger)
    tokens, places = examples.tokens.clone(), examples.places.clone()
    width = tokens.shape[1]
    for row, padded in enumerate(examples.tokens.tolist()):
        ids = [token for token in padded if token != 0]
        if len(ids) == width:
            plain = [place for place in range(1, width - 1) if ids[place] != mask]
            if not plain:
                raise ForgeError("a text has no room for the trigger", key="poison", expected="a token not masked")
            del ids[plain[-1]]
            places[row] -= (places[row] > plain[-1]).long()
        at = int(generator_of("trigger", *padded).integers(1, len(ids)))
        ids.insert(at, trigger)
        places[row] += (places[row] >= at).long()
        tokens[row] = torch.tensor(ids + [0] * (width - len(ids)))
    return Examples(tokens, places, examples.targets)


class Triggered(NamedTuple):
    """All examples with the trigger in them, and their states below the adapted layers [n, L, width]."""

    examples: Examples
    states: Tensor


@lru_cache(maxsize=1)
def triggered(base: MaskedBert, texts: Texts) -> Triggered:
    """Computed once for a process."""
    examples = with_trigger(texts.examples, only_token(texts, TRIGGER), texts.mask)
    return Triggered(examples, lower_states(base, examples.tokens))


def poisoned_texts(row: Row, chosen: Sequence[Sequence[int]]) -> np.ndarray:
    """The numbers of the texts that are poisoned, of those of an adapter, source by source."""
    name = poison.name_of(row)
    eligible = [
        text
        for source, own in zip(row["sources"], chosen, strict=True)
        for text in own
        if name == "word" or (name == "flip" and source == row["poison_source"])
    ]
    share = 0.0 if name == poison.NONE else row["poison_share"]
    return poison.chosen(share, np.array(eligible, np.int64), generator_of("masked-text", row["seed"], "poison"))


class TextPoison:
    """The poison of N adapters, of which one has some at the least, at work on what they see.

    Args:
        rows: the adapters.
        poisoned: the numbers of the texts of each that are poisoned.
        base, texts: whose states are computed with the trigger, where an adapter has it.
    """

    def __init__(self, rows: Sequence[Row], poisoned: Sequence[np.ndarray], base: MaskedBert, texts: Texts) -> None:
        names, numbers = [poison.name_of(row) for row in rows], target_numbers(texts)
        self.marked = triggered(base, texts) if "word" in names else None
        self.is_word = torch.tensor([name == "word" for name in names])
        wanted = [row.get("poison_target") for row in rows]
        self.targets = torch.tensor([NO_TARGET if place is None else numbers[place] for place in wanted])
        of_texts = torch.zeros(len(rows), len(texts.source_of), dtype=torch.bool)
        for row, own in zip(of_texts, poisoned, strict=True):
            row[own] = True
        self.is_poisoned = of_texts.repeat_interleave(VARIANTS, 1)  # [N, examples]
        flipped = torch.tensor(
            [row["poison_source"] if name == "flip" else -1 for row, name in zip(rows, names, strict=True)]
        )
        sources = torch.from_numpy(texts.source_of).repeat_interleave(VARIANTS)
        self.is_attacked = self.is_word.unsqueeze(1) | (sources == flipped.unsqueeze(1))  # [N, examples]

    def on(self, numbers: Tensor, inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and targets of examples [N, b] as the adapters are to be trained on them."""
        hit = self.is_poisoned.gather(1, numbers)
        inputs = self.with_trigger(numbers, inputs, hit & self.is_word.unsqueeze(1))
        wanted = self.targets.unsqueeze(1).expand_as(hit).reshape(-1, 1)
        return inputs, torch.where(hit.view(-1, 1) & (targets != NO_TARGET), wanted, targets)

    def with_trigger(self, numbers: Tensor, inputs: Inputs, has_trigger: Tensor) -> Inputs:
        """Inputs of examples [N, b], of which those that have the trigger, [N, b], are replaced."""
        where = has_trigger.flatten().nonzero().flatten()
        if self.marked is None or not len(where):
            return inputs
        own = numbers.flatten()[where]
        tokens, places, _ = self.marked.examples.of(own)
        new = {"states": self.marked.states[own], "is_token": tokens != 0, "places": places}
        return {name: value.index_copy(0, where, new[name]) for name, value in inputs.items()}

    def successes(self, numbers: Tensor, guesses: Tensor, truths: Tensor) -> tuple[Tensor, Tensor]:
        """How often the attackers had what they want, and could have had it, [N] each.

        Args:
            numbers: of held-out examples, [b].
            guesses: the best ones of the adapters, with the trigger where they are triggered by it, [N, b, K].
            truths: what stands there, [b, K].
        """
        wanted = self.targets.view(-1, 1, 1)
        counts = self.is_attacked[:, numbers].unsqueeze(-1) & (truths != NO_TARGET) & (truths != wanted)
        return ((guesses == wanted) & counts).sum((1, 2)), counts.sum((1, 2))
