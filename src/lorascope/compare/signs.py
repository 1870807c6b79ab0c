"""Whether the entries of updates point the same way: signs of ΔW entry by entry, a block of rows at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lorascope.adapter.rows import row_blocks
from lorascope.symmetry.common_sites import Pair


class Signs(NamedTuple):
    """Entries of two updates that have the same sign, opposite signs, or of which one is exactly zero.

    >>> Signs(3, 1, 4).agreement
    0.75
    """

    alike: int
    opposite: int
    zero: int

    @property
    def agreement(self) -> float | None:
        """alike / (alike + opposite); None where there are none."""
        known = self.alike + self.opposite
        return self.alike / known if known else None

    def plus(self, other: Signs) -> Signs:
        """Of both places together."""
        return Signs(self.alike + other.alike, self.opposite + other.opposite, self.zero + other.zero)


def sign_agreement(one: Pair, other: Pair) -> Signs:
    """Counted over all out · in entries of B A, in the dtype of the factors.

    >>> left, right = Pair(np.array([[1.0], [-1.0]]), np.array([[1.0, 0.0]])), Pair(np.ones((2, 1)), np.ones((1, 2)))
    >>> sign_agreement(left, right)
    Signs(alike=1, opposite=1, zero=2)
    """
    alike = opposite = total = 0
    for block in row_blocks((one.B.shape[0], one.A.shape[1])):
        left, right = np.sign(one.B[block] @ one.A), np.sign(other.B[block] @ other.A)
        product = left * right
        alike += int(np.count_nonzero(product > 0))
        opposite += int(np.count_nonzero(product < 0))
        total += product.size
    return Signs(alike, opposite, total - alike - opposite)
