"""Which adapters share bases: those that bases of their own cost least.

    Lloyd's turns in ΔW space: bases for each cluster → each adapter to the cluster that keeps most of it → again

Starts from ΔW ΔWᵀ and ΔWᵀ ΔW in bases that all share, by k-means++ (Arthur & Vassilvitskii 2007) on the unit sphere,
and ends when no adapter moves, or nothing is gained.

Source: Gabrielsson et al. (2024), arXiv 2407.00066, section 4.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lorascope.compress.shared_bases import shared_bases
from lorascope.symmetry.common_sites import Pair

_TURNS = 5
_FEATURES = 32  # directions of each side by which adapters are told apart at the start

Sites = Sequence[str]
PairsOf = Callable[[str], Sequence[Pair]]


def clustered(
    sites: Sites, pairs_of: PairsOf, weights: NDArray[np.float64], width: int, count: int, seed: int = 0
) -> NDArray[np.intp]:
    """The number of its cluster for each adapter, [n]; none is empty.

    Args:
        sites: of the adapters.
        pairs_of: site → the factor pairs [n] there.
        weights: [n], as for ``shared_bases``.
        width: of the bases that they will share.
        count: how many clusters, at most n.
        seed: of the start.

    >>> first, last = Pair(np.eye(4, 1), np.eye(1, 4)), Pair(np.eye(4, 1, -3), np.eye(1, 4, 3))
    >>> numbers = clustered(["q"], lambda site: [first, last, first], np.ones(3), 1, 2)
    >>> bool(numbers[0] == numbers[2] != numbers[1])
    True
    """
    total = len(weights)
    if count <= 1 or total <= 1:
        return np.zeros(total, np.intp)
    count = min(count, total)
    numbers = _started(_energies(sites, pairs_of, weights, width), count, np.random.default_rng(seed))
    best, most = numbers, -1.0
    for _ in range(_TURNS):
        kept = _kept(sites, pairs_of, weights, width, numbers, count)
        own = float(kept[np.arange(total), numbers].sum())
        if own <= most:
            break
        best, most = numbers, own
        numbers = _filled(kept.argmax(axis=1), kept, count)
        if bool((numbers == best).all()):
            break
    return best


def _energies(sites: Sites, pairs_of: PairsOf, weights: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """C Cᵀ and Cᵀ C of the cores of every adapter in bases that all share, [n, features], of unit length.

    They say which spaces ΔW lies in, whatever it does there; the cores themselves may have any sign.
    """
    found: list[NDArray[np.float64]] = []
    for site in sites:
        pairs = pairs_of(site)
        bases = shared_bases(pairs, weights, min(width * 2, _FEATURES), "eigen")
        for weight, core in zip(weights, map(bases.core, pairs), strict=True):
            C = weight * (core.B @ core.A)
            found.append(np.concatenate([(C @ C.T).ravel(), (C.T @ C).ravel()]))
    count = len(weights)
    features = np.stack([np.concatenate(found[number::count]) for number in range(count)])
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1.0)


def _started(features: NDArray[np.float64], count: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Each adapter to the nearest of ``count`` adapters that lie far apart."""
    chosen = [int(random.integers(len(features)))]
    nearest = np.full(len(features), np.inf)
    distances: list[NDArray[np.float64]] = []
    while True:
        distances.append(np.square(features - features[chosen[-1]]).sum(axis=1))
        nearest = np.minimum(nearest, distances[-1])
        if len(chosen) == count:
            break
        nearest[chosen] = 0.0
        share = nearest.sum()
        left = np.setdiff1d(np.arange(len(features)), chosen)
        chosen.append(int(random.choice(len(features), p=nearest / share) if share > 0 else left[0]))
    numbers = np.argmin(np.stack(distances), axis=0)
    numbers[chosen] = np.arange(count)
    return numbers


def _kept(
    sites: Sites,
    pairs_of: PairsOf,
    weights: NDArray[np.float64],
    width: int,
    numbers: NDArray[np.intp],
    count: int,
) -> NDArray[np.float64]:
    """What the bases of each cluster keep of each adapter, w² Σ ‖UᵀΔW V‖², [n, count]."""
    kept = np.zeros((len(weights), count))
    for site in sites:
        pairs = pairs_of(site)
        for number in range(count):
            members = np.flatnonzero(numbers == number)
            bases = shared_bases([pairs[int(member)] for member in members], weights[members], width, "eigen")
            for at, (pair, weight) in enumerate(zip(pairs, weights, strict=True)):
                core = bases.core(pair)
                kept[at, number] += float(np.sum(np.square(weight * (core.B @ core.A))))
    return kept


def _filled(numbers: NDArray[np.intp], kept: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """An empty cluster takes the adapter of which its own keeps least, from a cluster of two or more."""
    for number in range(count):
        if bool((numbers == number).any()):
            continue
        sizes = np.bincount(numbers, minlength=count)
        movable = np.flatnonzero(sizes[numbers] > 1)
        numbers[movable[int(np.argmin(kept[movable, numbers[movable]]))]] = number
    return numbers
