"""The angles between the spaces that two updates write to and read from, at the rank that their files can tell."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.symmetry.canonical import SVD
from lorascope.symmetry.cores import angles_between


class Angles(NamedTuple):
    """Principal angles θ_1 ≤ … ≤ θ_k of two spaces of dimensions k₁ and k₂, k = min(k₁, k₂), in radians.

    ``overlap`` = Σ cos²θ_i / k: 1 where the smaller space lies in the larger, about max(k₁, k₂)/n of random ones in n
    dimensions.
    """

    mean: float
    smallest: float
    overlap: float

    @classmethod
    def of(cls, one: SVD, rank1: int, other: SVD, rank2: int, *, side: str) -> Angles | None:
        """Of the column spaces (``side="out"``) or row spaces (``"in"``); None where an update is zero."""
        if not rank1 or not rank2:
            return None
        left, right = (_basis(svd, rank, side) for svd, rank in ((one, rank1), (other, rank2)))
        angles = np.asarray(angles_between(left, np.asarray(rank1), right, np.asarray(rank2)))
        return cls(float(angles.mean()), float(angles[0]), float(np.mean(np.cos(angles) ** 2)))


def _basis(svd: SVD, rank: int, side: str) -> NDArray[np.float64]:
    return np.asarray(svd.U[:, :rank] if side == "out" else svd.Vh[:rank].T, np.float64)


def mean_angles(found: list[Angles]) -> Angles | None:
    """Over sites: the mean of means and overlaps, the smallest of all; None without any.

    >>> mean_angles([Angles(0.5, 0.1, 1.0), Angles(1.5, 0.2, 0.0)])
    Angles(mean=1.0, smallest=0.1, overlap=0.5)
    """
    if not found:
        return None
    count = len(found)
    return Angles(
        math.fsum(one.mean for one in found) / count,
        min(one.smallest for one in found),
        math.fsum(one.overlap for one in found) / count,
    )
