"""Regular expressions over site names, matched in linear time: the configuration that brings them is not trusted.

All patterns of a table make one automaton, which reads a name from its end, where PEFT ties every pattern:

    re.match(r"(.*\\.)?(PATTERN)$", name)        the first pattern of the table that matches wins

So names that are spelled out are found as in a dictionary of endings, however many there are, and nothing is ever tried
again from another place. States of the automaton are made when a name first reaches them (Thompson, 1968); what that
costs is counted, and bounded by ``MAX_WORK`` for a table whatever its patterns and the names are.

Read are the parts that have a language: characters, classes, groups, alternatives, repeats, ``^`` and ``$``. Looking
around, references back, flags and repeats inside of unbounded repeats are refused with one error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lorascope.errors import AdapterError
from lorascope.formats.pattern_syntax import Node, parsed, spelled_out

MAX_WORK = 3_000_000
"""Steps that may be taken over all patterns of one file: about two seconds."""

_PARSED = 60  # steps that one character of a pattern counts for when it is parsed
_BUILT = 12  # those that one state counts for
_ANY = ""  # what a bare dot reads, beside the characters


@dataclass
class Budget:
    """The steps that are left for the patterns of one file.

    >>> Budget(3).spend(4, "rank_pattern")
    Traceback (most recent call last):
    lorascope.errors.AdapterError: rank_pattern: the patterns are too complex to be matched safely ...
    """

    left: int = MAX_WORK

    def spend(self, steps: int, key: str) -> None:
        """Count steps for the field ``key``.

        Raises:
            AdapterError: where more are asked for than are left.
        """
        self.left -= steps
        if self.left < 0:
            raise AdapterError(
                "the patterns are too complex to be matched safely",
                key=key,
                expected=f"at most {MAX_WORK} steps to match all sites of a file",
                found="more",
                hint="spell the names of the sites out, or use fewer patterns",
            )


_NO_FORK: dict[str, int] = {}


class _State(NamedTuple):
    """A state of the deterministic automaton.

    Args:
        members: the states of the other automaton that it stands for.
        accepted: the first pattern that ends here and may begin after a dot, or None.
        steps: character → number of the next state, as far as names have come here.
    """

    members: tuple[int, ...]
    accepted: int | None
    steps: dict[str, int]


class _Edge(NamedTuple):
    """What a state of the non-deterministic automaton does.

    Args:
        targets: where it leads.
        accepts: the pattern that is matched here, or None.
        reads: the class that leads to ``targets[0]``; None where targets are reached without reading.
        guard: ``^`` or ``$`` where the targets are only reached at the beginning or end of a name, else empty.
        fork: character → where it leads; those of spelled-out names that end alike are one.
    """

    targets: list[int]
    accepts: int | None = None
    reads: re.Pattern[str] | None = None
    guard: str = ""
    fork: dict[str, int] = _NO_FORK


class NamePatterns:
    """A table of patterns.

    Args:
        patterns: regular expressions, the first of which that matches wins.
        key: the field of the configuration, for messages.
        is_whole: whether a pattern must match the whole name; else what follows any dot will do.
        budget: the work that may be done, shared by the tables of one file.

    Raises:
        AdapterError: where one is no regular expression, or too complex.

    >>> table = NamePatterns(["q_proj", r"layers\\.[0-3]\\..*"], "rank_pattern")
    >>> table.find("model.layers.2.q_proj"), table.find("model.layers.2.k_proj"), table.find("layers.4.k_proj")
    (0, 1, None)
    """

    def __init__(
        self, patterns: Iterable[str], key: str, *, is_whole: bool = False, budget: Budget | None = None
    ) -> None:
        self.key = key
        self.is_whole = is_whole
        self._budget = budget or Budget()
        self._edges: list[_Edge] = []
        self._states: list[_State] = []
        self._numbers: dict[tuple[int, ...], int] = {}
        self._found: dict[str, int | None] = {}
        names = self._edge(_Edge([], fork={}))
        starts = [names]
        for index, pattern in enumerate(patterns):
            accept = self._edge(_Edge([], accepts=index))
            if (tokens := spelled_out(pattern)) is not None:
                self._spend(len(pattern))
                self._spell(names, tokens, accept)
            else:
                self._spend(len(pattern) * _PARSED)
                starts.append(self._built(parsed(pattern, key), accept))
        self._has_patterns = len(self._edges) > 1
        self._end = self._state(starts, at_end=True)

    def find(self, name: str) -> int | None:
        """The number of the first pattern that matches the name, or None.

        Raises:
            AdapterError: where the name has a line break, at which ``$`` and ``.`` mean something else, or the work
                that the patterns make is beyond ``MAX_WORK``.
        """
        if not self._has_patterns:
            return None
        if name not in self._found:
            if "\n" in name:
                raise AdapterError("a name with a line break cannot be matched with patterns", key=ascii(name)[:200])
            self._found[name] = self._matched(name)
        return self._found[name]

    def _matched(self, name: str) -> int | None:
        best: int | None = None
        state = self._end
        for place in range(len(name) - 1, -1, -1):
            character = name[place]
            accepted = self._states[state].accepted
            if character == "." and not self.is_whole and accepted is not None and (best is None or accepted < best):
                best = accepted
            steps = self._states[state].steps
            if character not in steps:
                steps[character] = self._stepped(state, character)
            state = steps[character]
            if not self._states[state].members:
                return best
        whole = [index for index in self._whole(state, at_end=not name) if best is None or index < best]
        return min(whole, default=best)

    def _stepped(self, state: int, character: str) -> int:
        members = self._states[state].members
        self._spend(len(members))
        targets: list[int] = []
        for member in members:
            edge = self._edges[member]
            if edge.fork:
                targets += [edge.fork[one] for one in (character, _ANY) if one in edge.fork]
            elif edge.reads is not None and edge.reads.match(character) is not None:
                targets.append(edge.targets[0])
        return self._state(targets, at_end=False)

    def _state(self, members: Iterable[int], *, at_end: bool) -> int:
        closed = self._closure(members, {"$"} if at_end else set())
        if closed not in self._numbers:
            self._numbers[closed] = len(self._states)
            accepted = [index for member in closed if (index := self._edges[member].accepts) is not None]
            self._states.append(_State(closed, min(accepted, default=None), {}))
        return self._numbers[closed]

    def _whole(self, state: int, *, at_end: bool) -> list[int]:
        """The patterns that end in this state where the name begins."""
        closed = self._closure(self._states[state].members, {"^", "$"} if at_end else {"^"})
        return [index for member in closed if (index := self._edges[member].accepts) is not None]

    def _closure(self, members: Iterable[int], passed: set[str]) -> tuple[int, ...]:
        """What is reached without reading; a guard that cannot be passed here stays, as it may be passed later."""
        seen: set[int] = set()
        kept: list[int] = []
        waiting = list(members)
        while waiting:
            member = waiting.pop()
            if member in seen:
                continue
            seen.add(member)
            edge = self._edges[member]
            if edge.accepts is not None or edge.reads is not None:
                kept.append(member)
            elif edge.fork:
                kept.append(member)
                waiting.extend(edge.targets)
            elif edge.guard and edge.guard not in passed:
                if edge.guard == "^":
                    kept.append(member)
            else:
                waiting.extend(edge.targets)
        self._spend(len(seen))
        return tuple(sorted(kept))

    def _spell(self, start: int, tokens: Sequence[str], accept: int) -> None:
        """Let the characters of a name lead from ``start`` to ``accept``, read backwards."""
        is_tied, place = tokens[:1] == ["^"], start
        for token in reversed(tokens[1:] if is_tied else tokens):
            fork = self._edges[place].fork
            character = _ANY if token == "." else token[-1]
            if character not in fork:
                fork[character] = self._edge(_Edge([], fork={}))
            place = fork[character]
        self._edges[place].targets.append(self._edge(_Edge([accept], guard="^")) if is_tied else accept)

    def _built(self, node: Node, target: int) -> int:
        """The state from which the node is read backwards, before what ``target`` reads."""
        self._spend(_BUILT)
        match node.kind:
            case "reads":
                if isinstance(node.reads, str):
                    return self._edge(_Edge([], fork={node.reads: target}))
                return self._edge(_Edge([target], reads=node.reads))
            case "guard":
                return self._edge(_Edge([target], guard=str(node.reads)))
            case "sequence":
                for part in node.parts:
                    target = self._built(part, target)
                return target
            case "choice":
                return self._edge(_Edge([self._built(part, target) for part in node.parts]))
            case "repeat":
                return self._repeated(node, target)

    def _repeated(self, node: Node, target: int) -> int:
        (part,) = node.parts
        state = target
        if node.most is None:
            state = self._edge(_Edge([target]))
            self._edges[state].targets.append(self._built(part, state))
        else:
            for _ in range(node.most - node.least):
                state = self._edge(_Edge([self._built(part, state), target]))
        for _ in range(node.least):
            state = self._built(part, state)
        return state

    def _edge(self, edge: _Edge) -> int:
        self._edges.append(edge)
        return len(self._edges) - 1

    def _spend(self, steps: int) -> None:
        self._budget.spend(steps, self.key)
