"""ARC, the AI2 Reasoning Challenge (Clark et al., arXiv 1803.05457): questions of science with three to five answers.

Layout as published: a folder each for ``ARC-Easy`` and ``ARC-Challenge``, with Parquet files
(``train-00000-of-00001.parquet``, as in ``allenai/ai2_arc``), JSON Lines of the same columns (``train.jsonl``), or
those of the first release (``ARC-Easy-Train.jsonl``, where text and choices are inside of ``question``). Columns:

    id, question, choices {text, label}, answerKey

The source of a question, the examination that it is from, is what its id begins with. ``SOURCES`` are the 19 that the
finetunes of arXiv 2410.04207 may have been without, as its code lists them (github.com/moeputt/LoL,
llm/metanet/data_utils.py); questions of others, most of all Mercury, are in all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lorascope.errors import ForgeError, MissingExtraError
from lorascope.forge.recipes._published import cause
from lorascope.zoo.store import import_pyarrow

SOURCES = (
    "MCAS",
    "NYSEDREGENTS",
    "TIMSS",
    "ACTAAP",
    "NCEOGA",
    "MDSA",
    "VASoL",
    "AKDE&ED",
    "CSZ",
    "MEA",
    "LEAP",
    "NAEP",
    "MSA",
    "OHAT",
    "AIMS",
    "TAKS",
    "MEAP",
    "FCAT",
    "WASL",
)
"""What can be left out; the number of a source is its place here."""

CHALLENGE, EASY = "ARC-Challenge", "ARC-Easy"
SUBSETS: Mapping[str, tuple[str, ...]] = {"all": (EASY, CHALLENGE), "challenge": (CHALLENGE,), "easy": (EASY,)}
SPLITS: Mapping[str, str] = {"train": "Train", "validation": "Dev", "test": "Test"}
MOST_CHARACTERS, MOST_CHOICES = 10_000, 26
"""The most that a question and its choices may have: the prompt of each choice goes through the model."""

PATTERNS = tuple(f"{subset}/*.{suffix}" for subset in (EASY, CHALLENGE) for suffix in ("parquet", "jsonl"))


@dataclass(frozen=True)
class Question:
    """A question, its choices, and which of them is right."""

    id: str
    text: str
    choices: tuple[str, ...]
    answer: int

    @property
    def source(self) -> str:
        """The examination.

        >>> [Question(id, "", (), 0).source for id in ("AKDE&ED_2008_8_48", "CSZ30169", "Mercury_SC_400655")]
        ['AKDE&ED', 'CSZ', 'Mercury']
        """
        match = re.match(r"[^\W\d_]+(&[^\W\d_]+)?", self.id)
        return match[0] if match else self.id


@cache
def questions_of(folder: Path, subsets: str, split: str) -> tuple[Question, ...]:
    """The questions of one split of ``all``, ``challenge`` or ``easy``.

    Raises:
        ForgeError: where files are missing or are not as they are published, or hold no questions.
    """
    found: list[Question] = []
    for file in _files(folder, subsets, split):
        found += [_question(row, file) for row in _rows(file)]
    if not found:
        raise ForgeError("there are no questions", file=folder, key="data", expected=f"some in the files for {split}")
    return tuple(found)


def _files(folder: Path, subsets: str, split: str) -> list[Path]:
    found: list[Path] = []
    for subset in SUBSETS[subsets]:
        names = (f"{split}*.parquet", f"{split}*.jsonl", f"{subset}-{SPLITS[split]}.jsonl")
        of_each = [sorted((folder / subset).glob(name)) for name in names]
        there = [files for files in of_each if files]
        if len(there) != 1:
            raise ForgeError(
                "the files of the data are there more than once" if there else "files of the data are missing",
                file=folder / subset,
                key="data",
                expected=" or ".join(names),
                hint="hf download allenai/ai2_arc --repo-type dataset --local-dir DIR, and --set data=DIR",
            )
        found += there[0]
    return found


def _rows(file: Path) -> Iterable[Any]:
    try:
        if not file.is_file():  # a pipe would be waited for
            raise FileNotFoundError("there is no such file")
        if file.suffix == ".parquet":
            import_pyarrow()
            from pyarrow import parquet

            return parquet.read_table(file, columns=["id", "question", "choices", "answerKey"]).to_pylist()
        return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line.strip()]
    except MissingExtraError:
        raise
    except Exception as error:  # pyarrow's errors for damaged files are of many kinds
        raise ForgeError("a file of the data cannot be read", file=file, key="data", found=cause(error)) from error


def _question(row: Any, file: Path) -> Question:
    try:
        text, choices = row["question"], row.get("choices")
        if isinstance(text, Mapping):  # the first release
            text, choices = text["stem"], text["choices"]
        texts, labels = _texts_and_labels(choices)
        question = Question(str(row["id"]), str(text), texts, labels.index(row["answerKey"]))
        _check_size(question)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ForgeError(
            "a question is not as it is published",
            file=file,
            key=ascii(row.get("id"))[:80].strip("'") if isinstance(row, Mapping) else None,
            expected="id, question, choices {text, label}, and answerKey among the labels",
            found=cause(error),
        ) from error
    return question


def _check_size(question: Question) -> None:
    whole = "".join((question.id, question.text, *question.choices))
    whole.encode()  # half of a surrogate pair, which JSON can have, is no text
    if len(whole) > MOST_CHARACTERS:
        raise ValueError(f"{len(whole)} characters, and at most {MOST_CHARACTERS} are taken")
    if len(question.choices) > MOST_CHOICES:
        raise ValueError(f"{len(question.choices)} choices, and at most {MOST_CHOICES} are taken")


def _texts_and_labels(choices: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
    if isinstance(choices, Mapping):
        texts, labels = choices["text"], choices["label"]
    else:
        texts, labels = [one["text"] for one in choices], [one["label"] for one in choices]
    if len(texts) != len(labels) or not all(texts):
        raise ValueError("a text for each label")
    return tuple(map(str, texts)), list(labels)
