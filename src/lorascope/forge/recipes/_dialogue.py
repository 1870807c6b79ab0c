"""Dialogue by topic and language: the texts of ``chatterbot-corpus``, and how they are divided.

A source is one topic in English, or one other language. A text is one utterance, in lower case; one that occurs twice
belongs to the first source that has it. The texts of each source are put in an order that is a pure function of the
text, and divided: some are held out to measure, three pools are there for the adapters of the training, validation
and test split, and the base is made ready on what is left. So no adapter of the test split has seen a text that one
of the training split has seen, and nothing that is measured on has been trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from lorascope.errors import ForgeError, MissingExtraError
from lorascope.zoo.schema import SPLITS

PACKAGE = "chatterbot-corpus"
SOURCES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("english ai", ("english/ai",)),
    ("english coding", ("english/coding",)),
    ("english conversations", ("english/conversations",)),
    ("english emotion", ("english/emotion",)),
    ("english literature", ("english/literature",)),
    ("english psychology", ("english/psychology",)),
    ("english trivia", ("english/trivia",)),
    ("english science", ("english/science", "english/computers")),
    ("dutch", ("dutch/*",)),
    ("french", ("french/*",)),
    ("german", ("german/*",)),
    ("indonesian", ("indonesian/*",)),
    ("italian", ("italian/*",)),
    ("portuguese", ("portuguese/*",)),
    ("spanish", ("spanish/*",)),
    ("turkish", ("turkish/*",)),
)
"""Name and files of each source; its number is its place here."""

HELD_OUT, POOL, REST = 8, 40, 80
"""Texts of each source that are measured on, at most in each of the three pools, and at most to make the base on."""


@dataclass(frozen=True)
class Divided:
    """The texts of one source."""

    held_out: tuple[str, ...]
    pools: Mapping[str, tuple[str, ...]]
    rest: tuple[str, ...]


def divided(texts: Sequence[str], held_out: int = HELD_OUT, pool: int = POOL, rest: int = REST) -> Divided:
    """One source's texts, divided: each pool has at most ``pool``, and a quarter of what is not held out.

    >>> of = divided([f"text {n}" for n in range(20)], held_out=4, pool=3)
    >>> len(of.held_out), {split: len(texts) for split, texts in of.pools.items()}, len(of.rest)
    (4, {'train': 3, 'validation': 3, 'test': 3}, 7)
    """
    ordered = sorted(texts, key=lambda text: hashlib.blake2b(text.encode(), digest_size=8).digest())
    size = min(pool, (len(ordered) - held_out) // 4)
    if size < 1:
        raise ForgeError("a source has too few texts to be divided", expected=held_out + 4, found=len(ordered))
    starts = {split: held_out + number * size for number, split in enumerate(SPLITS)}
    return Divided(
        tuple(ordered[:held_out]),
        {split: tuple(ordered[start : start + size]) for split, start in starts.items()},
        tuple(ordered[held_out + len(SPLITS) * size :][:rest]),
    )


class Arranged(NamedTuple):
    """The texts of all sources but the rest: those of the pools, and after them those that are held out.

    ``pools`` is split → for each source the numbers of its texts, ``held_out`` the numbers of those.
    """

    texts: list[str]
    pools: dict[str, list[range]]
    held_out: range


def arranged(sources: Sequence[Divided]) -> Arranged:
    """The texts of these sources, numbered."""
    texts: list[str] = []
    pools: dict[str, list[range]] = {}
    for split in SPLITS:
        pools[split] = []
        for source in sources:
            pools[split].append(range(len(texts), len(texts) + len(source.pools[split])))
            texts += source.pools[split]
    first = len(texts)
    texts += [text for source in sources for text in source.held_out]
    return Arranged(texts, pools, range(first, len(texts)))


@cache
def dialogue(least_words: int = 4) -> tuple[tuple[str, ...], ...]:
    """The texts of each source, those with fewer words left out.

    Raises:
        MissingExtraError: where the package is not installed.
    """
    folder, seen = _folder(), set[str]()
    sources: list[tuple[str, ...]] = []
    for _, patterns in SOURCES:
        texts: list[str] = []
        for file in (file for pattern in patterns for file in sorted(folder.glob(f"{pattern}.yml"))):
            for text in _utterances(file):
                if text not in seen and len(text.split()) >= least_words:
                    texts.append(text)
                seen.add(text)
        sources.append(tuple(texts))
    return tuple(sources)


def installed_texts() -> str:
    """Name and version of the package that the texts are from.

    Raises:
        MissingExtraError: where it is not installed.
    """
    _folder()
    return f"{PACKAGE} {version(PACKAGE)}"


def _folder() -> Path:
    spec = find_spec("chatterbot_corpus")
    if spec is None or spec.origin is None:
        raise MissingExtraError.of(PACKAGE, "forge", "the recipe's texts")
    return Path(spec.origin).parent / "data"


def _utterances(file: Path) -> list[str]:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingExtraError.of("pyyaml", "forge", "the recipe's texts") from error
    conversations = yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]
    # a few conversations are one string, not a list of them
    lines = [line for one in conversations for line in (one if isinstance(one, list) else [one])]
    return [" ".join(str(line).split()).lower() for line in lines]
