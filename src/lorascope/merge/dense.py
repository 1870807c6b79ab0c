"""Methods that act on single entries of ΔW: their result by blocks of rows, and never a whole matrix.

A product is worked out in the same blocks whichever rows are asked for: matrix products of another number of rows may
round differently, and then an entry could be on the other side of its threshold at the next call. The range finder
asks for all rows about eight times, so that blocks are kept as far as a fixed budget goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter.rows import row_blocks
from lorascope.merge.method import Rows
from lorascope.symmetry.common_sites import Pair

Block = Callable[[slice], NDArray[np.float64]]

KEPT = 1 << 24
"""How many numbers of a result are kept between calls: 128 MiB, a matrix of 4096 × 4096."""


def in_blocks(shape: tuple[int, int], block: Block) -> Rows:
    """A matrix that is always worked out in the blocks of ``row_blocks``, as rows of any slice.

    >>> matrix = in_blocks((3, 2), lambda rows: np.arange(6.0).reshape(3, 2)[rows])
    >>> matrix.rows(slice(1, 3))
    array([[2., 3.],
           [4., 5.]])
    """

    kept: dict[int, NDArray[np.float64]] = {}

    def made(own: slice) -> NDArray[np.float64]:
        if own.start in kept:
            return kept[own.start]
        result = block(own)
        if sum(one.size for one in kept.values()) + result.size <= KEPT:
            result.flags.writeable = False
            kept[own.start] = result
        return result

    def rows(wanted: slice) -> NDArray[np.float64]:
        begin, end, _ = wanted.indices(shape[0])
        parts = [
            made(own)[max(begin - own.start, 0) : end - own.start]
            for own in row_blocks(shape)
            if own.start < end and own.stop > begin
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros((0, shape[1])), *parts])

    return Rows(shape, rows)


def blocks_of(pair: Pair) -> Iterator[NDArray[np.float64]]:
    """B A block by block."""
    for block in row_blocks((pair.B.shape[0], pair.A.shape[1])):
        yield pair.B[block] @ pair.A
