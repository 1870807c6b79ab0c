"""Regular expressions of a configuration as trees: what is common in names, and nothing that takes more to match.

    choice      sequence | sequence …
    sequence    atoms, each with * + ? {m,n} after it (a ? after these changes which match is found, not whether)
    atom        a character, . \\d \\w \\s [class], (choice), (?:choice), (?P<name>choice), ^ $ \\A \\Z

Whether a text is a regular expression is for Python to say, which is asked first.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from lorascope.errors import AdapterError

MAX_LENGTH = 512
"""Characters of one pattern."""

MAX_UNBOUNDED = 4
"""Unbounded repeats of one pattern: PEFT, which goes back and tries again, would take n⁵ steps for more."""

MAX_DEPTH = 20
"""Groups inside of groups."""

MAX_REPEATS = 1000
"""Times that {m,n} may ask for."""

_SPELLED_OUT = re.compile(r"\^?(?:[\w\-/: ]|\.|\\[^\w\s])*\$?", re.ASCII)
_COUNTED = re.compile(r"\{(?:(?P<least>\d+)(?P<open>,(?P<most>\d*))?|,(?P<alone>\d*))\}", re.ASCII)
_GROUP = re.compile(r"\((?:\?:|\?P<\w+>|(?!\?))")
_CLASSES = "dDwWsS"
_CONTROLS = "nrtfva"
_GUARDS = {"^": "^", "$": "$", "\\A": "^", "\\Z": "$"}


@dataclass(frozen=True)
class Node:
    """A part of a pattern.

    Args:
        kind: reads one character, is a guard (``^`` or ``$``, in ``reads``), or is made of parts.
        reads: the character, or the class as a compiled pattern of one character.
        parts: of a sequence or a choice; the one part of a repeat.
        least, most: how often a repeat may be there, ``most`` None for any number.
    """

    kind: Literal["reads", "guard", "sequence", "choice", "repeat"]
    reads: str | re.Pattern[str] | None = None
    parts: tuple[Node, ...] = ()
    least: int = 1
    most: int | None = 1
    is_unbounded: bool = field(default=False)


def spelled_out(pattern: str) -> list[str] | None:
    """The characters of a pattern that only spells a name out, or None for one that does more.

    A bare dot stands for any character, others are escaped; ``^`` may come first. A ``$`` at the end says nothing more.

    >>> spelled_out(r"^layers\\.0.q$"), spelled_out("q|v")
    (['^', 'l', 'a', 'y', 'e', 'r', 's', '\\\\.', '0', '.', 'q'], None)
    """
    if len(pattern) > MAX_LENGTH or not _SPELLED_OUT.fullmatch(pattern):
        return None
    tokens = re.findall(r"\\.|.", pattern)
    return tokens[:-1] if tokens[-1:] == ["$"] else tokens


def parsed(pattern: str, key: str) -> Node:
    """The tree of a pattern.

    Args:
        pattern: the text.
        key: the field of the configuration, for messages.

    Raises:
        AdapterError: where it is no regular expression, or too complex to be matched safely.

    >>> [part.reads for part in parsed("q|v", "rank_pattern").parts]
    ['q', 'v']
    """
    if len(pattern) > MAX_LENGTH:
        raise _too_complex(pattern, key)
    _compiled(pattern, key)
    return _Parser(pattern, key).whole()


def _too_complex(pattern: str, key: str) -> AdapterError:
    return AdapterError(
        "a pattern is too complex to be matched safely",
        key=key,
        expected=f"at most {MAX_LENGTH} characters: names, classes, groups, alternatives, and up to {MAX_UNBOUNDED} "
        "unbounded repeats, none inside of another",
        found=ascii(pattern)[:120],
    )


@lru_cache(maxsize=256)
def _class(text: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about classes that may mean something else one day
        return re.compile(text, re.DOTALL)


def _compiled(pattern: str, key: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise AdapterError("a pattern is no regular expression", key=key, found=ascii(pattern)[:120]) from error


class _Parser:
    """Reads a pattern that Python takes; what it does not know it refuses."""

    def __init__(self, pattern: str, key: str) -> None:
        self.pattern, self.key, self.place, self.unbounded = pattern, key, 0, 0

    def whole(self) -> Node:
        node = self._choice(0)
        if self.place < len(self.pattern):  # a bracket that closes nothing
            raise _too_complex(self.pattern, self.key)
        return node

    def _choice(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise _too_complex(self.pattern, self.key)
        parts = [self._sequence(depth)]
        while self._next() == "|":
            self.place += 1
            parts.append(self._sequence(depth))
        return parts[0] if len(parts) == 1 else _made("choice", parts)

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self._next() not in ("", "|", ")"):
            parts.append(self._repeats(self._atom(depth)))
        return parts[0] if len(parts) == 1 else _made("sequence", parts)

    def _repeats(self, atom: Node) -> Node:
        bounds = self._bounds()
        if bounds is None:
            return atom
        least, most = bounds
        if self._next() == "?":  # lazy: the same names match
            self.place += 1
        elif self._next() == "+":  # possessive: others do
            raise _too_complex(self.pattern, self.key)
        is_unbounded = most is None
        self.unbounded += is_unbounded
        is_nested = is_unbounded and atom.is_unbounded
        if max(least, most or 0) > MAX_REPEATS or is_nested or self.unbounded > MAX_UNBOUNDED:
            raise _too_complex(self.pattern, self.key)
        return Node("repeat", parts=(atom,), least=least, most=most, is_unbounded=is_unbounded or atom.is_unbounded)

    def _bounds(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if (found := simple.get(self._next())) is not None:
            self.place += 1
            return found
        counted = _COUNTED.match(self.pattern, self.place)
        if counted is None:  # also a brace that is a character
            return None
        self.place = counted.end()
        least = int(counted["least"] or 0)
        if counted["least"] is not None and counted["open"] is None:
            return least, least
        most = counted["most"] if counted["least"] is not None else counted["alone"]
        return least, int(most) if most else None

    def _atom(self, depth: int) -> Node:
        character = self._next()
        if character == "(":
            group = _GROUP.match(self.pattern, self.place)
            if group is None:
                raise _too_complex(self.pattern, self.key)
            self.place = group.end()
            inner = self._choice(depth + 1)
            self.place += 1
            return inner
        if character == "[":
            return self._class()
        if character == "\\":
            return self._escape()
        self.place += 1
        if character in _GUARDS:
            return Node("guard", reads=_GUARDS[character])
        return Node("reads", reads=_class(".") if character == "." else character)

    def _escape(self) -> Node:
        text = self.pattern[self.place : self.place + 2]
        self.place += 2
        if text in _GUARDS:
            return Node("guard", reads=_GUARDS[text])
        letter = text[1:]
        if letter in _CLASSES or letter in _CONTROLS:
            return Node("reads", reads=_class(text))
        if letter.isalnum():  # a reference back, a word's border, a character by its number
            raise _too_complex(self.pattern, self.key)
        return Node("reads", reads=letter)

    def _class(self) -> Node:
        end = self.place + 1
        end += self.pattern[end : end + 1] == "^"
        end += self.pattern[end : end + 1] == "]"
        while self.pattern[end] != "]":
            end += 2 if self.pattern[end] == "\\" else 1
        text = self.pattern[self.place : end + 1]
        self.place = end + 1
        return Node("reads", reads=_class(text))

    def _next(self) -> str:
        return self.pattern[self.place : self.place + 1]


def _made(kind: Literal["sequence", "choice"], parts: list[Node]) -> Node:
    return Node(kind, parts=tuple(parts), is_unbounded=any(part.is_unbounded for part in parts))
