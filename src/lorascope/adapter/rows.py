"""ΔW by blocks of rows, so that it need not be there in full."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import AdapterError

Rows = Callable[[slice], NDArray[Any]]
"""Some rows of a matrix [out, in], formed when they are asked for: a new array, or one that is not to be changed."""

_BLOCK = 1 << 20  # numbers: 8 MiB in float64


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the first axis that cover an array, each of about a million numbers.

    >>> [(block.start, block.stop) for block in row_blocks((5, 1 << 19))]
    [(0, 2), (2, 4), (4, 5)]
    """
    count = max(_BLOCK // max(math.prod(shape[1:]), 1), 1)
    for begin in range(0, shape[0], count):
        yield slice(begin, min(begin + count, shape[0]))


def formed(rows: Rows, shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The matrix in full."""
    matrix = np.empty(shape, dtype)
    for block in row_blocks(shape):
        matrix[block] = rows(block)
    return matrix


def add_rows(matrix: NDArray[Any], rows: Rows, factor: float, key: str) -> None:
    """Add factor times the rows to a matrix of their shape, in place; ``key`` is for messages.

    Raises:
        AdapterError: where a number is beyond the range of the dtype.
    """
    for block in row_blocks(matrix.shape):
        with np.errstate(over="ignore", invalid="ignore"):
            added = factor * rows(block)
            check_range(added, "ΔW", key)
            matrix[block] += added


def check_range(array: NDArray[Any], what: str, key: str) -> None:
    """Check that all numbers are finite.

    Raises:
        AdapterError: where one is not.
    """
    if not bool(np.isfinite(array).all()):
        raise AdapterError(f"{what} is beyond the range of the dtype", key=key, found=array.dtype.name)
