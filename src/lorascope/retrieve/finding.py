"""``find``: the adapters of an index that are nearest to one by weights.

Sketches say in which order to look; the distances are exact, of the files as they are now. An adapter is passed over
only where it is further away than what is asked for:

    | ‖ΔW₁‖ − ‖ΔW₂‖ | > d        always true of two that are further apart than d
    ‖s₁ − s₂‖ > 6 d              but for one pair in 10^10 (``sketch``)

Among unrelated adapters, which are all about √2 ‖ΔW‖ apart, that passes over few: the k nearest of them are exact where
all have been read. ``is_approximate`` reads only the 4 k whose sketches are nearest.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.errors import LorascopeError
from lorascope.formats import read
from lorascope.retrieve.exact import measured
from lorascope.retrieve.index import Entry, Index
from lorascope.retrieve.indexing import place_of
from lorascope.retrieve.sketch import REACH, Sketch, sketch_of

READ_FOR_EACH = 4
"""Files that are read for each result that an approximate search gives."""

ROUNDING = 4e-7
"""Of sketches in float32 and of the sums that they are: relative to the norms."""


@dataclass(frozen=True)
class Found:
    """A neighbour: ``distance`` is ‖ΔW₁ − ΔW₂‖, ``relative_distance`` that over the larger norm; both exact."""

    entry: Entry
    distance: float
    relative_distance: float
    cosine: float | None
    norm: float


@dataclass(frozen=True, eq=False)
class Search:
    """``found``: nearest first. ``read``: how many of the ``searched`` adapters were read, the others passed over.

    ``unread``: path → why a candidate could not be read; it may be nearer than what was found. ``apart``: how many of
    those read have no site in common with the adapter; they are never near, however small the norms.
    """

    found: tuple[Found, ...]
    searched: int
    read: int
    unread: dict[str, str]
    is_approximate: bool
    apart: int = 0


def nearest(
    adapter: Adapter,
    index: Index,
    *,
    k: int | None = 10,
    within: float | None = None,
    is_approximate: bool = False,
    without: str | None = None,
    advance: Callable[[int], Any] | None = None,
) -> Search:
    """The adapters of an index nearest to one, of those that have a site in common with it.

    Args:
        adapter: what is looked for.
        index: where.
        k: how many at most; None for all that ``within`` allows.
        within: only those of at most this relative distance.
        is_approximate: read only those whose sketches are nearest.
        without: a path that is left out, that of the adapter itself, as ``place_of`` gives it.
        advance: called with the number of adapters read or passed over.

    Raises:
        LorascopeError: where neither k nor ``within`` is given, or one is out of its range; where an approximate
            search has no k.
        AdapterError: where ΔW of the adapter is not known without the base weight.

    >>> from lorascope.retrieve import Index
    >>> from lorascope.adapter import LowRank
    >>> nearest(Adapter({"q": LowRank(np.ones((4, 2)), np.ones((2, 3)))}), Index.empty()).found
    ()
    """
    if k is None and within is None:
        raise LorascopeError("nothing says how many to find", expected="k or within")
    if k is not None and k < 1:
        raise LorascopeError("so many cannot be found", key="k", expected="at least 1", found=k)
    if is_approximate and k is None:
        raise LorascopeError(
            "an approximate search reads as many files as k asks for",
            key="approximate",
            expected="k",
            found="within alone",
        )
    check_within(within)
    own = sketch_of(adapter)
    estimates = distances_to(index.sketches, own.values)
    below = lower_bounds(index, own, estimates)
    larger = np.maximum(index.norms, own.norm)
    order = np.argsort(estimates, kind="stable")
    if is_approximate and k is not None:
        order = order[: READ_FOR_EACH * k + 1]
    best: list[tuple[float, int]] = []  # a heap of the k nearest, the furthest first
    results: dict[int, Found] = {}
    unread: dict[str, str] = {}
    count = apart = 0
    for place in order.tolist():
        entry = index.entries[place]
        is_beyond = (within is not None and below[place] > within * larger[place]) or (
            k is not None and len(best) == k and below[place] > -best[0][0]
        )
        if advance is not None:
            advance(1)
        if is_beyond or (without is not None and without in (entry.path, place_of(entry.path))):
            continue
        try:
            one, shared = _compared(adapter, entry)
        except LorascopeError as error:
            unread[entry.path] = str(error)
            continue
        count += 1
        if not shared:
            apart += 1
            continue
        if within is not None and one.relative_distance > within:
            continue
        results[place] = one
        if k is not None:
            heapq.heappush(best, (-one.distance, place))
            if len(best) > k:
                del results[heapq.heappop(best)[1]]
    ordered = sorted(results.items(), key=lambda item: (item[1].distance, item[0]))
    return Search(tuple(one for _, one in ordered), len(index), count, unread, is_approximate, apart)


def check_within(within: float | None) -> None:
    """Refuse a relative distance that there is not.

    Raises:
        LorascopeError: below 0, above 2, or NaN.
    """
    if within is not None and not 0 <= within <= 2:
        raise LorascopeError("there is no such relative distance", key="within", expected="0 to 2", found=within)


def distances_to(sketches: NDArray[np.float32], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """‖s_i − s‖ [n], from differences and not from an expansion, in blocks."""
    found = np.empty(len(sketches))
    for begin in range(0, len(sketches), 4096):
        block = sketches[begin : begin + 4096] - values.astype(np.float32)
        found[begin : begin + 4096] = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))
    return found


def lower_bounds(index: Index, own: Sketch, estimates: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the distances [n] are at least, by norms and by sketches."""
    sizes = index.norms + own.norm
    by_norms = np.abs(index.norms - own.norm) - 1e-12 * sizes
    return np.maximum(by_norms, estimates / REACH - ROUNDING * sizes)


def _compared(adapter: Adapter, entry: Entry) -> tuple[Found, int]:
    found = measured(adapter, read(entry.path))
    return Found(entry, found.distance, found.relative_distance, found.cosine, found.norm2), found.shared
