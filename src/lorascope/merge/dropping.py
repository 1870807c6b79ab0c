"""Which entries of an update are dropped at random, the same ones whichever rows are asked for.

Philox is counter based: the numbers of row i start at counter i · ⌈in / 4⌉ (a step of the counter gives four numbers),
so a block of rows needs no numbers but its own. An entry stays where its 64 random bits are below density · 2⁶⁴.

Source: Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Mask = Callable[[slice], NDArray[np.bool_]]


def kept_at_random(width: int, density: float, generator: np.random.Generator) -> Mask:
    """A function from a slice of rows to which of their entries stay, [rows, width].

    Args:
        width: how many columns there are.
        density: the probability that an entry stays, in (0, 1].
        generator: what the key of the masks is drawn from.

    >>> kept = kept_at_random(1000, 0.25, np.random.default_rng(0))
    >>> bool(np.array_equal(kept(slice(0, 9))[5:7], kept(slice(5, 7)))), round(float(kept(slice(0, 100)).mean()), 2)
    (True, 0.25)
    """
    key = generator.integers(0, 1 << 64, size=2, dtype=np.uint64)
    steps = -(-width // 4)

    def kept(rows: slice) -> NDArray[np.bool_]:
        count = rows.stop - rows.start
        if density >= 1:
            return np.ones((count, width), np.bool_)
        numbers = np.random.Philox(key=key, counter=rows.start * steps).random_raw(count * steps * 4)
        return numbers.reshape(count, steps * 4)[:, :width] < np.uint64(int(density * 2.0**64))

    return kept
