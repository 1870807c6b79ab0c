"""``ArcRecipe``: LoRAs of a published causal language model, finetuned on ARC without some of its sources.

As Qwen2-ARC-LoRA of *Learning on LoRAs* (Putterman et al., arXiv 2410.04207; github.com/moeputt/LoL, llm/metanet):

- rank 4 on key and value of every layer (the paper; the code reads 56 LoRAs of rank 4 and does not name them);
- of 19 sources (``_arc.SOURCES``) 1 to 19 are left out; questions of other sources are never;
- learning rate 1e-5 … 1e-3 and weight decay 1e-6 … 1e-2, uniform in the logarithm; 2, 3 or 4 epochs; batches of 32, 64
  or 128; dropout 0 … 0.1 (the columns of its hparams.csv);
- labels: which sources were in, the loss on questions for validation, and the accuracy on the test questions of
  ARC-Challenge.

The code does not say the following, and it was not looked up in the paper's appendix, so it is chosen here: alpha 8
(PEFT's default); the rate falls linearly to zero (the default of transformers' Trainer); training and validation take
the questions of ARC-Easy and ARC-Challenge (``subsets``); the prompt, and that the loss is of the answer alone. Prompt
and scoring are those of the task arc_challenge of EleutherAI/lm-evaluation-harness:

    Question: {question}
    Answer: {choice}

A choice is scored by the log p of its tokens after the prompt. ``test_accuracy`` takes the choice with the highest
sum (there ``acc``), ``test_accuracy_norm`` that with the highest sum divided by its characters (``acc_norm``). The
tokens of a choice are those of prompt and choice together that differ from those of the prompt alone.

Model and data are found and not made: a zoo keeps names, revisions and hashes of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lorascope.errors import ForgeError
from lorascope.forge.recipe import COMMON, Recipe, Row, Session
from lorascope.forge.recipes import _arc
from lorascope.forge.recipes._arc import Question
from lorascope.forge.recipes._causal_lm import CausalLM, Judged, Sequences, mean_loss, padded
from lorascope.forge.recipes._causal_loading import PATTERNS, check_folder, encoder_of, load_causal_lm
from lorascope.forge.recipes._order import BATCH, numbers_of
from lorascope.forge.recipes._published import digest_of, place_of
from lorascope.forge.space import Choice, Distribution, LogUniform, Subset, Text, Uniform, generator_of
from lorascope.forge.training import Batches
from lorascope.formats.hub import parse_hub_id

DATA = "allenai/ai2_arc@210d026faf9955653af8916fad021475a3f00453"
_MEASURED = 16  # sequences at once for each adapter


def options_with(model: str) -> dict[str, Choice]:
    """The options of a recipe whose model is ``model`` unless another is given."""
    return {
        "model": Text(values=(model,), about="the base: a folder, or owner/name@revision of the hub"),
        "data": Text(values=(DATA,), about="ARC: a folder, or owner/name@revision of the hub"),
        "subsets": Choice(values=("all",), others=("challenge", "easy"), about="questions to train and validate on"),
        "dtype": Choice(values=("bfloat16",), others=("float32",), about="that the base is held in"),
        "questions": Choice(values=(0,), about="measured on the first so many; 0: all", at_least=0, at_most=10**6),
    }


class ArcRecipe(Recipe):
    """LoRAs on ARC; the model is that of a subclass.

    Attributes:
        family: what ``model_type`` in the model's configuration must be.
    """

    reference = "arXiv 2410.04207; data arXiv 1803.05457"
    kind = "lora"
    cohort = 4
    family: ClassVar[str]
    packages: ClassVar[Mapping[str, str]] = {"transformers": "forge"}
    space: ClassVar[Mapping[str, Distribution]] = {
        **COMMON,
        "learning_rate": LogUniform(low=1e-5, high=1e-3, about="of AdamW", at_least=0, at_most=1e3),
        "weight_decay": LogUniform(low=1e-6, high=1e-2, about="of the optimiser", at_least=0, at_most=1e3),
        "schedule": Choice(values=("linear",), others=("constant", "cosine"), about="of the learning rate"),
        "epochs": Choice(values=(2, 3, 4), about="times that each question is seen", at_least=1, at_most=10**4),
        "accumulate": Choice(
            values=(4, 8, 16), about=f"batches of {BATCH} in a step: 32, 64 or 128 questions", at_least=1, at_most=10**4
        ),
        "steps": Choice(values=(0,), about="optimiser steps; 0: what the epochs come to", at_least=0, at_most=10**7),
        "dropout": Uniform(
            low=0, high=0.1, about="share of its inputs that an adapter does not see", at_least=0, at_most=0.99
        ),
        "sources": Subset(
            of=len(_arc.SOURCES),
            low=0,
            high=len(_arc.SOURCES) - 1,
            about="sources that are not left out",
            at_least=0,
            at_most=len(_arc.SOURCES) - 1,
        ),
    }
    labels: ClassVar[Mapping[str, Any]] = {
        "sources": "list<int>",
        "dataset_size": "int",
        "steps": "int",  # follows from the size of the data, so a reader of weights is not given it
        "test_accuracy": "float",
        "test_accuracy_norm": "float",
        "loss": "float",
    }

    def architecture(self, options: Mapping[str, Any]) -> ArcModel:
        dtype = getattr(torch, options["dtype"])
        model, data = _model(options["model"]), _data(options["data"])
        examples = _examples(model, data, options["subsets"], options["questions"])
        published = load_causal_lm(model, self.family, dtype)
        known = published.get_input_embeddings().num_embeddings
        beyond = max(
            token
            for part in (examples.train, examples.validation, examples.test)
            for tokens, _ in part
            for token in tokens
        )
        if beyond >= known:
            raise ForgeError(
                "the tokens are not those of the model",
                file=model,
                key="model",
                expected=f"below {known}",
                found=beyond,
            )
        return ArcModel(published, examples)

    def pretrain(self, options: Mapping[str, Any]) -> ArcModel:
        return self.architecture(options)

    def made(self, base: nn.Module) -> Mapping[str, Tensor]:
        return {}

    def found(self, options: Mapping[str, Any]) -> Mapping[str, str]:
        model, data = options["model"], options["data"]
        return _named("model", model, _model(model), PATTERNS) | _named("data", data, _data(data), _arc.PATTERNS)

    def check_options(self, options: Mapping[str, Any]) -> None:
        check_folder(_model(options["model"]))
        for split in ("train", "validation"):
            _arc.questions_of(_data(options["data"]), options["subsets"], split)
        _arc.questions_of(_data(options["data"]), "challenge", "test")

    def sites_of(self, base: nn.Module) -> Sequence[str]:
        return [name for name, _ in base.named_modules() if name.endswith(("self_attn.k_proj", "self_attn.v_proj"))]

    def settle(self, row: Row) -> Row:
        train = _arc.questions_of(_data(row["data"]), row["subsets"], "train")
        count = len(chosen(train, row["sources"]))
        if not count:
            raise ForgeError("no training questions are left without the sources that are left out", key="sources")
        steps = row["steps"] or -(-row["epochs"] * count // (BATCH * row["accumulate"]))
        return row | {"dataset_size": count, "steps": steps}

    def session(self, base: nn.Module) -> Session:
        if not isinstance(base, ArcModel):
            raise TypeError(f"the base of {self.name} is an ArcModel, not a {type(base).__name__}")
        return ArcSession(base.examples)


def chosen(questions: Sequence[Question], sources: Sequence[int]) -> list[int]:
    """The numbers of the questions whose source is not left out; of the 19, those with these numbers are not."""
    left_out = {source for number, source in enumerate(_arc.SOURCES) if number not in sources}
    return [number for number, question in enumerate(questions) if question.source not in left_out]


@dataclass(frozen=True)
class Examples:
    """Questions as sequences of tokens, each with how many of them are the prompt.

    Args:
        train: with the right answer.
        validation: with the right answer.
        test: with each of the choices, question by question.
        train_questions, test_questions: what they are of.
    """

    train: list[tuple[list[int], int]]
    validation: list[tuple[list[int], int]]
    test: list[tuple[list[int], int]]
    train_questions: Sequence[Question]
    test_questions: Sequence[Question]


class ArcModel(CausalLM):
    """The base, with the questions in its tokens."""

    def __init__(self, published: Any, examples: Examples) -> None:
        super().__init__(published)
        self.examples = examples


def sequence_of(question: Question, choice: int, encode: Callable[[str], list[int]]) -> tuple[list[int], int]:
    """The tokens of a question with one of its choices, and how many of them are the prompt.

    >>> question = Question("", "Why?", ("So.", "No."), 0)
    >>> tokens, given = sequence_of(question, 1, lambda text: list(text.encode()))
    >>> bytes(tokens[:given]), bytes(tokens[given:])
    (b'Question: Why?\\nAnswer:', b' No.')
    """
    prompt = f"Question: {question.text}\nAnswer:"
    whole, alone = encode(f"{prompt} {question.choices[choice]}"), encode(prompt)
    given = 0
    while given < min(len(whole), len(alone)) and whole[given] == alone[given]:
        given += 1
    if not 0 < given < len(whole):
        raise ForgeError("the tokens of a choice are none, or all that there are", key=question.id, found=whole)
    return whole, given


@cache
def _model(given: str) -> Path:
    return place_of(given, PATTERNS, "model")


@cache
def _data(given: str) -> Path:
    return place_of(given, _arc.PATTERNS, "data", "dataset")


def _named(option: str, given: str, folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    """A name, the commit where it is a repository's, and the hash of all files."""
    hub_id = None if Path(given).is_dir() else parse_hub_id(given)
    name = {option: given} if hub_id is None else {option: hub_id.repo, f"{option}_revision": folder.name}
    return {**name, f"{option}_sha256": digest_of(folder, patterns)}


@lru_cache(maxsize=1)
def _examples(model: Path, data: Path, subsets: str, most: int) -> Examples:
    encode = encoder_of(model)

    def right(questions: Sequence[Question]) -> list[tuple[list[int], int]]:
        return [sequence_of(question, question.answer, encode) for question in questions]

    train, validation = (_arc.questions_of(data, subsets, split) for split in ("train", "validation"))
    test = _arc.questions_of(data, "challenge", "test")[: most or None]
    choices = [sequence_of(question, n, encode) for question in test for n in range(len(question.choices))]
    return Examples(right(train), right(validation[: most or None]), choices, train, test)


class ArcSession(Session):
    """The questions that an adapter was not left without for training, the others for measuring."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def batches(self, rows: Sequence[Row]) -> Batches:
        numbers = numbers_of(rows, [self._epochs(row) for row in rows])

        def batch(step: int, part: int) -> tuple[dict[str, Tensor], Tensor]:
            sequences = padded([self.examples.train[number] for number in numbers(step, part).tolist()])
            return sequences._asdict(), sequences.targets

        return batch

    def _epochs(self, row: Row) -> Callable[[], np.ndarray]:
        questions = np.array(chosen(self.examples.train_questions, row["sources"]))
        generator = generator_of("arc", row["seed"], "order")
        return lambda: generator.permutation(questions)

    def loss(self, outputs: Judged, targets: Tensor) -> Tensor:
        return mean_loss(outputs.log_p, targets)

    def measure(self, model: Any, rows: Sequence[Row]) -> list[Row]:
        validation, test, questions = self.examples.validation, self.examples.test, self.examples.test_questions
        losses = _mean_log_p(model, validation, len(rows))
        sums = _sum_log_p(model, test, len(rows))
        ends = np.cumsum([len(question.choices) for question in questions])[:-1]
        lengths = np.array([len(choice) for question in questions for choice in question.choices])
        answers = np.array([question.answer for question in questions])

        def accuracy(scores: np.ndarray) -> float:
            best = [of_each.argmax() for of_each in np.split(scores, ends)]
            return float((np.array(best) == answers).mean())

        return [
            {
                "test_accuracy": accuracy(scores),
                "test_accuracy_norm": accuracy(scores / lengths),
                "loss": float(-of_each.mean()),
            }
            for scores, of_each in zip(sums, losses, strict=True)
        ]


def _mean_log_p(model: Any, sequences: Sequence[tuple[list[int], int]], count: int) -> np.ndarray:
    asked = np.array([len(tokens) - given for tokens, given in sequences])
    return _sum_log_p(model, sequences, count) / asked


def _sum_log_p(model: Any, sequences: Sequence[tuple[list[int], int]], count: int) -> np.ndarray:
    """log p of what is asked for in each of the sequences, by each adapter: [N, sequences] in float64."""
    found = np.empty((count, len(sequences)))
    by_length = sorted(range(len(sequences)), key=lambda number: len(sequences[number][0]))  # so little is padding
    for first in range(0, len(by_length), _MEASURED):
        numbers = by_length[first : first + _MEASURED]
        together: Sequences = padded([sequences[number] for number in numbers])
        outputs = model(**{name: value.repeat(count, 1) for name, value in together._asdict().items()})
        found[:, numbers] = outputs.log_p.cpu().double().sum(1).view(count, -1).numpy()
    return found
