"""Rank-one units of several updates in groups, by k-means: the frame of LoRA-LEGO.

Lloyd's iteration over anything that has means and distances. It starts at the units that lie farthest apart (the
largest, then always the one farthest from those taken), so that neither the order of the adapters nor a random number
decides; only of units that are just as large or as far, the first is taken.

Source: Zhao et al. (2024), arXiv 2409.16167: rank-wise clustering, one representative for each cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 200
Mean = TypeVar("Mean")


class Geometry(NamedTuple, Generic[Mean]):
    """What k-means needs of its units.

    ``norms`` [N]; ``mean``: of the units with these indices; ``distances``: of all units from a mean, [N].
    """

    norms: NDArray[np.float64]
    mean: Callable[[NDArray[np.intp]], Mean]
    distances: Callable[[Mean], NDArray[np.float64]]


def grouped(geometry: Geometry[Mean], count: int) -> list[tuple[NDArray[np.intp], Mean]]:
    """At most ``count`` groups of units, at least 1: the indices of each and its mean. No units, no groups.

    >>> x = np.array([1.0, 10.0, 2.0])
    >>> groups = grouped(Geometry(abs(x), lambda of: float(x[of].mean()), lambda mean: abs(x - mean)), 2)
    >>> [(of.tolist(), mean) for of, mean in groups]
    [([1], 10.0), ([0, 2], 1.5)]
    """
    total = len(geometry.norms)
    count = min(count, total)
    if count == 0:
        return []
    taken = [int(np.argmax(geometry.norms))]
    nearest = geometry.distances(geometry.mean(np.array(taken)))
    while len(taken) < count:
        taken.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, geometry.distances(geometry.mean(np.array(taken[-1:]))))
    means = [geometry.mean(np.array([one])) for one in taken]
    groups = np.full(total, -1)
    for _ in range(_ROUNDS):
        closest = np.argmin(np.stack([geometry.distances(mean) for mean in means]), axis=0)
        if np.array_equal(closest, groups):
            break
        groups = closest
        means = [geometry.mean(own) if len(own := np.flatnonzero(groups == k)) else means[k] for k in range(count)]
    members = [np.flatnonzero(groups == k) for k in range(count)]
    return [(own, mean) for own, mean in zip(members, means, strict=True) if len(own)]


def weighted_mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ w x / Σ w over the first axis; 0 where no weight is positive.

    >>> weighted_mean(np.array([1.0, 4.0]), np.array([2.0, 1.0]))
    array(2.)
    """
    total = float(weights.sum())
    return np.asarray(weights @ values / total) if total > 0 else np.zeros(values.shape[1:])
