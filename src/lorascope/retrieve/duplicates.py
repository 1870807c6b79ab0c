"""Groups of adapters that are one update, whatever their format, gauge, rank padding, dtype and file name.

Two adapters are joined where ‖ΔW₁ − ΔW₂‖ ≤ within · max(‖ΔW₁‖, ‖ΔW₂‖), measured on the files. Candidates come from the
index: their norms differ by no more than that, and their sketches by no more than six times as much (``sketch``), so
that none is missed but for one pair in 10^10. Groups are what hangs together by such pairs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorascope.adapter import Adapter
from lorascope.errors import LorascopeError
from lorascope.formats import read
from lorascope.retrieve.exact import measured
from lorascope.retrieve.finding import ROUNDING, check_within
from lorascope.retrieve.index import Entry, Index
from lorascope.retrieve.sketch import REACH

WITHIN = 0.01
"""Relative distance of duplicates: rounding balanced factors to bfloat16 moves ΔW by 0.2 %."""

SAME = 1e-5
"""Below this, two files are one update to the rounding of float32 in any sensible gauge."""

_KEPT = 64


@dataclass(frozen=True)
class Member:
    """An adapter of a group, and how far it is from the first of the group."""

    entry: Entry
    distance: float
    relative_distance: float


@dataclass(frozen=True, eq=False)
class Duplicates:
    """``groups`` of two members or more; ``candidates``: pairs that were measured; ``unread``: path → why not."""

    groups: tuple[tuple[Member, ...], ...]
    searched: int
    candidates: int
    unread: dict[str, str]


def duplicates(index: Index, *, within: float = WITHIN, advance: Callable[[int], Any] | None = None) -> Duplicates:
    """Every group of duplicates and near-duplicates among the readable adapters of an index.

    Args:
        index: what is searched.
        within: relative distance up to which two are joined.
        advance: called with the number of adapters whose neighbours are known.

    Raises:
        LorascopeError: where ``within`` is no relative distance.

    >>> duplicates(Index.empty()).groups
    ()
    """
    check_within(within)
    files = _Files()
    leader = list(range(len(index)))
    count = 0
    for i, j in candidates(index, within, advance):
        one, other = _root(leader, i), _root(leader, j)
        if one == other or (index.norms[i] == index.norms[j] == 0 and _differ(index, i, j)):
            continue
        count += 1
        found = files.measured(index.entries[i].path, index.entries[j].path)
        if found is not None and found.relative_distance <= within:
            leader[max(one, other)] = min(one, other)
    members: dict[int, list[int]] = {}
    for place in range(len(index)):
        members.setdefault(_root(leader, place), []).append(place)
    groups = [_group(index, places, files) for places in members.values() if len(places) > 1]
    return Duplicates(tuple(group for group in groups if len(group) > 1), len(index), count, files.unread)


def candidates(index: Index, within: float, advance: Callable[[int], Any] | None = None) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, that norms and sketches allow to be within a relative distance.

    In order of their norms, each is held against those that are next: |n₁ − n₂| ≤ within · max(n₁, n₂).
    """
    order = np.argsort(index.norms, kind="stable")
    norms, sketches = index.norms[order], index.sketches[order]
    with np.errstate(over="ignore"):  # from within = 1 on, norms of any size may be near
        reach = norms / max(1 - within, 1e-300) * (1 + 1e-12)
    ends = np.searchsorted(norms, reach, side="right")
    for place, end in enumerate(ends.tolist()):
        if end > place + 1:
            block = sketches[place + 1 : end] - sketches[place]
            apart = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))
            larger = norms[place + 1 : end]
            near = np.flatnonzero(apart <= REACH * (within + 2 * ROUNDING) * larger)
            for other in near.tolist():
                i, j = int(order[place]), int(order[place + 1 + other])
                yield min(i, j), max(i, j)
        if advance is not None:
            advance(1)


def _group(index: Index, places: list[int], files: _Files) -> tuple[Member, ...]:
    first = index.entries[places[0]]
    found = [Member(first, 0.0, 0.0)]
    for place in places[1:]:
        own = files.measured(first.path, index.entries[place].path)
        if own is not None:
            found.append(Member(index.entries[place], own.distance, own.relative_distance))
    return tuple(found)


def _differ(index: Index, i: int, j: int) -> bool:
    """Two zero updates are the same only where they are of the same layers."""
    return index.entries[i].layers != index.entries[j].layers


def _root(leader: list[int], place: int) -> int:
    while leader[place] != place:
        leader[place] = leader[leader[place]]
        place = leader[place]
    return place


class _Files:
    """Adapters that were read last, and those that could not be."""

    def __init__(self) -> None:
        self.unread: dict[str, str] = {}
        self._kept: OrderedDict[str, Adapter] = OrderedDict()

    def measured(self, one: str, other: str) -> Any:
        """The two compared; None where one cannot be read."""
        left, right = self._read(one), self._read(other)
        try:
            return None if left is None or right is None else measured(left, right)
        except LorascopeError as error:  # a file that has changed since it was indexed
            self.unread[one if str(error.file).startswith(one) else other] = str(error)
            return None

    def _read(self, path: str) -> Adapter | None:
        if path in self.unread:
            return None
        if path not in self._kept:
            try:
                self._kept[path] = read(path)
            except LorascopeError as error:
                self.unread[path] = str(error)
                return None
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(path)
        return self._kept[path]
