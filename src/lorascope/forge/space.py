"""Declared spaces: the distributions that a recipe's settings are drawn from, as values that print themselves.

A draw is a pure function of (recipe, zoo seed, index, name): every setting has its own stream, so that fixing
one of them with ``--set`` changes no other.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lorascope.errors import ForgeError

Type = Literal["int", "float", "string", "list<int>"]


@dataclass(frozen=True, kw_only=True)
class Distribution(ABC):
    """Where one setting comes from.

    Args:
        about: what the setting is, in a few words.
        at_least, at_most: hard bounds of values that are given with ``--set``; the distribution may be narrower.
    """

    about: str = ""
    at_least: float = -math.inf
    at_most: float = math.inf

    @property
    @abstractmethod
    def type(self) -> Type:
        """The type of the values."""

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> Any:
        """One value."""

    def parse(self, text: str) -> Any:
        """A value given as text, such as ``0.001`` or ``1,4,7``.

        Raises:
            ValueError: with what was expected.
        """
        if self.type == "string":
            return text
        if self.type == "list<int>":
            values = [self._number(part, integer=True) for part in text.replace(";", ",").split(",")]
            if len(set(values)) != len(values):
                raise ValueError("different whole numbers")
            return sorted(values)
        return self._number(text, integer=self.type == "int")

    def alternatives(self, text: str) -> list[str]:
        """The values, as text, that a setting may be one of."""
        return text.split("|")

    def _number(self, text: str, *, integer: bool) -> Any:
        what = "a whole number" if integer else "a number"
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (("at least", self.at_least), ("at most", self.at_most))
            if math.isfinite(bound)
        ]
        expected = " ".join([what, " and ".join(bounds)]).strip()
        try:
            value = int(text) if integer else float(text)
        except ValueError:
            raise ValueError(expected) from None
        if not self.at_least <= value <= self.at_most:
            raise ValueError(expected)
        return value


@dataclass(frozen=True, kw_only=True)
class LogUniform(Distribution):
    """Uniform in the logarithm between ``low`` and ``high``; rounded where ``integer``.

    >>> print(LogUniform(low=1e-4, high=1e-2))
    log-uniform 0.0001..0.01
    """

    low: float
    high: float
    integer: bool = False

    @property
    def type(self) -> Type:
        return "int" if self.integer else "float"

    def draw(self, generator: np.random.Generator) -> Any:
        value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return round(value) if self.integer else value

    def __str__(self) -> str:
        return f"log-uniform {self.low:g}..{self.high:g}"


@dataclass(frozen=True, kw_only=True)
class Uniform(Distribution):
    """Uniform between ``low`` and ``high``.

    >>> print(Uniform(low=0, high=0.1))
    uniform 0..0.1
    """

    low: float
    high: float

    @property
    def type(self) -> Type:
        return "float"

    def draw(self, generator: np.random.Generator) -> float:
        return float(generator.uniform(self.low, self.high))

    def __str__(self) -> str:
        return f"uniform {self.low:g}..{self.high:g}"


@dataclass(frozen=True, kw_only=True)
class Integers(Distribution):
    """Uniform over the whole numbers from ``low`` to ``high``, both included."""

    low: int
    high: int

    @property
    def type(self) -> Type:
        return "int"

    def draw(self, generator: np.random.Generator) -> int:
        return int(generator.integers(self.low, self.high, endpoint=True))

    def __str__(self) -> str:
        return f"uniform {self.low}..{self.high}"


@dataclass(frozen=True, kw_only=True)
class Choice(Distribution):
    """Uniform over the listed values; one that is listed twice is twice as likely.

    Args:
        values: what is drawn from.
        others: strings that can be given with ``--set`` too, though they are not drawn.

    >>> str(Choice(values=(0.0, 0.0, 0.1))), Choice(values=(4,), at_least=1).parse("8")
    ('one of 0.0, 0.0, 0.1', 8)
    """

    values: tuple[Any, ...]
    others: tuple[str, ...] = ()

    @property
    def type(self) -> Type:
        first = self.values[0]
        return "string" if isinstance(first, str) else "int" if isinstance(first, int) else "float"

    def draw(self, generator: np.random.Generator) -> Any:
        return self.values[int(generator.integers(len(self.values)))]

    def parse(self, text: str) -> Any:
        known = (*self.values, *self.others)
        if self.type == "string" and text not in known:
            raise ValueError(" or ".join(known))
        return super().parse(text)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return str(self.values[0])
        return "one of " + ", ".join(map(str, self.values))


@dataclass(frozen=True, kw_only=True)
class Text(Choice):
    """Like ``Choice`` of strings, but any text can be given; it is one value, whatever is in it.

    >>> parse_settings({"sites": Text(values=("",))}, {"sites": "fc1|fc2"}), str(Text(values=("",)))
    ({'sites': 'fc1|fc2'}, "''")
    """

    def alternatives(self, text: str) -> list[str]:
        return [text]

    def parse(self, text: str) -> str:
        return text

    def __str__(self) -> str:
        return super().__str__() or "''"


class Prompt(Text):
    """``Text`` that tokenizers take: a path may hold bytes that are no UTF-8, a prompt may not.

    >>> Prompt(values=("",)).parse("un café")
    'un café'
    """

    def parse(self, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text in UTF-8, without {text[error.start]!a}") from error
        return text


@dataclass(frozen=True, kw_only=True)
class Subset(Distribution):
    """A uniform subset of 0..``of``-1, its size uniform between ``low`` and ``high``."""

    of: int
    low: int
    high: int

    @property
    def type(self) -> Type:
        return "list<int>"

    def draw(self, generator: np.random.Generator) -> list[int]:
        size = int(generator.integers(self.low, self.high, endpoint=True))
        return sorted(int(item) for item in generator.choice(self.of, size=size, replace=False))

    def __str__(self) -> str:
        return f"{self.low} to {self.high} of 0..{self.of - 1}"


@dataclass(frozen=True, kw_only=True)
class Hash(Distribution):
    """A whole number that is a pure function of (recipe, zoo seed, index): the seed of one adapter."""

    @property
    def type(self) -> Type:
        return "int"

    def draw(self, generator: np.random.Generator) -> int:
        return int(generator.integers(2**53))

    def __str__(self) -> str:
        return "its own for each adapter"


ONE_OF = "one of"
"""Where a setting is given as ``a|b|c``: {"one of": [a, b, c]}."""


def given(value: Any, generator: np.random.Generator) -> Any:
    """A setting that was given: itself, or one of those that were given."""
    if isinstance(value, dict):
        return value[ONE_OF][int(generator.integers(len(value[ONE_OF])))]
    return value


def printed(value: Any) -> str:
    """A setting that was given, or a distribution, in words."""
    return f"one of {', '.join(map(str, value[ONE_OF]))}" if isinstance(value, dict) else str(value)


def generator_of(*key: object) -> np.random.Generator:
    """A NumPy generator that is a pure function of the key."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def parse_settings(space: Mapping[str, Distribution], settings: Mapping[str, str]) -> dict[str, Any]:
    """Settings given as text, parsed by the distribution of their name; ``2|4|8`` is one of three.

    Raises:
        ForgeError: for an unknown name (with the nearest known one) or a value that it cannot have.
    """
    parsed: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in space:
            near = difflib.get_close_matches(name, space, n=1, cutoff=0.5)
            raise ForgeError(
                "the recipe has no such setting",
                key=name,
                expected=", ".join(space),
                hint=f"did you mean {near[0]}?" if near else None,
            )
        try:
            values = [space[name].parse(part) for part in space[name].alternatives(str(text))]
            parsed[name] = values[0] if len(values) == 1 else {ONE_OF: values}
        except ValueError as error:
            raise ForgeError("a setting cannot have this value", key=name, expected=error, found=text) from error
    return parsed
