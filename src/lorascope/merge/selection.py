"""The k-th largest magnitude of a matrix that is only there by blocks, exactly, in bounded memory.

The bits of a float64 ≥ 0 are ordered as the numbers are. So a histogram of the leading 16 bits of |x| says in which of
65,536 intervals the k-th largest lies; the next pass looks only at the numbers of that interval. As soon as an interval
has few enough numbers to hold, they are collected and the k-th is picked among them: two passes as a rule, five at
most, whatever the numbers are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Blocks = Callable[[], Iterable[NDArray[np.float64]]]
"""The blocks of a matrix from the first on, the same numbers at each call."""

_WIDTH = 16
_HELD = 1 << 19  # numbers that are collected: 4 MiB


def largest_magnitude(blocks: Blocks, place: int, *, held: int = _HELD) -> float:
    """The ``place``-th largest |x|, counted from 1.

    Args:
        blocks: of finite numbers.
        place: between 1 and how many numbers there are.
        held: how many numbers may be held at once beside a block.

    >>> largest_magnitude(lambda: [np.array([1.0, -4.0]), np.array([3.0])], 2)
    3.0
    """
    prefix, known, left = 0, 0, place
    while known < 64:
        counts = np.zeros(1 << _WIDTH, np.int64)
        for block in blocks():
            digits = _within(block, prefix, known) >> np.uint64(64 - known - _WIDTH)
            counts += np.bincount((digits & np.uint64(0xFFFF)).astype(np.int64), minlength=1 << _WIDTH)
        from_top = np.cumsum(counts[::-1])
        step = int(np.searchsorted(from_top, left))
        digit = len(counts) - 1 - step
        left -= int(from_top[step] - counts[digit])
        prefix, known = (prefix << _WIDTH) | digit, known + _WIDTH
        if counts[digit] <= held:
            break
    if known == 64:
        return float(np.asarray(prefix, np.uint64).view(np.float64))
    collected = np.concatenate([_within(block, prefix, known) for block in blocks()])
    bits = np.partition(collected, len(collected) - left)[len(collected) - left]
    return float(bits.view(np.float64))


def _within(block: NDArray[np.float64], prefix: int, known: int) -> NDArray[np.uint64]:
    """The bits of the magnitudes whose first ``known`` bits are ``prefix``."""
    bits = np.abs(np.ascontiguousarray(block, np.float64)).view(np.uint64).reshape(-1)
    return bits if known == 0 else bits[(bits >> np.uint64(64 - known)) == np.uint64(prefix)]
