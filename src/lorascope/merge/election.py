"""Trimming, electing a sign and the disjoint mean: what TIES does to the entries of several arrays.

    v_i = w_i x_i      s = sign(Σ v_i)      m = Σ_{i: sign v_i = s} v_i / Σ_{i: sign v_i = s} |w_i|

With equal weights m is the mean of those entries that have the elected sign, as published. Where both signs have the
same mass, none is elected and m is 0, as the mean of all is there.

Source: Yadav et al. (2023), arXiv 2306.01708, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.selection import Blocks, largest_magnitude


def threshold(blocks: Blocks, size: int, density: float) -> float:
    """The least magnitude that is kept: the ⌊density · size⌋-th largest, at least the first.

    Entries of just that magnitude are all kept, so that no order of entries decides.
    """
    return 0.0 if density >= 1 else largest_magnitude(blocks, max(1, int(density * size)))


def trimmed(array: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """The array with zeros where the magnitude is below ``least``.

    >>> trimmed(np.array([0.5, -2.0, 1.0]), 1.0)
    array([ 0., -2.,  1.])
    """
    return np.where(np.abs(array) >= least, array, 0.0)


def trimmed_to(array: NDArray[np.float64], density: float) -> NDArray[np.float64]:
    """The array with only the largest share of its entries."""
    return trimmed(array, threshold(lambda: [array], array.size, density)) if array.size else array


def elected_mean(arrays: Iterable[NDArray[np.float64]], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """m of arrays of one shape, taken one after another: no more than six are held, however many there are.

    >>> elected_mean([np.array([3.0, 1.0, 0.0]), np.array([-1.0, 3.0, 2.0])], np.array([0.5, 0.5]))
    array([3., 2., 2.])
    """
    sums: list[NDArray[np.float64]] = []  # of positive entries, of negative ones, and of |w| for each
    for array, weight in zip(arrays, weights, strict=True):
        if not sums:
            sums = [np.zeros_like(array) for _ in range(4)]
        weighted = weight * array
        for place, has_sign in enumerate((weighted > 0, weighted < 0)):
            sums[place] += np.where(has_sign, weighted, 0.0)
            sums[place + 2] += abs(weight) * has_sign
    positive, negative, for_positive, for_negative = sums
    total = positive + negative
    return np.where(
        total > 0,
        positive / np.where(for_positive > 0, for_positive, 1.0),
        np.where(total < 0, negative / np.where(for_negative > 0, for_negative, 1.0), 0.0),
    )
