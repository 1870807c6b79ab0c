"""Adapters as the tokens of their sites: singular vectors under seeded projections, and singular values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.features.projection import projected
from lorascope.predict.blocks import blocks_of
from lorascope.predict.kernel import Sites
from lorascope.predict.model import Inputs, Sample, Structure, shapes_of
from lorascope.symmetry import stack_adapters


def sites_of(structure: Structure) -> Sites:
    """The sites, in the order of the stacks."""
    stacks = list(shapes_of(structure).values())
    return Sites(
        tuple(name for names in stacks for name in names),
        tuple((number, place) for number, names in enumerate(stacks) for place in range(len(names))),
    )


def tokens_of(
    samples: Iterable[Sample],
    structure: Structure,
    *,
    size: int,
    seed: int,
    advance: Callable[[int], Any] | None = None,
) -> Inputs:
    """``left0`` [n, S, h, k] = P U, ``S0`` [n, S, k], ``right0`` [n, S, h′, k] = Q V for the first shape, and so on.

    k is the largest rank among the samples; absent directions are zero. h = min(size, out): exact where ``size``
    reaches the shape.
    """
    parts: dict[str, list[NDArray[Any]]] = {}
    for block in blocks_of(samples, structure):
        for number, stack in enumerate(stack_adapters(block, sites=list(structure.sites))):
            parts.setdefault(f"left{number}", []).append(projected(stack, "out", size, seed))
            parts.setdefault(f"S{number}", []).append(stack.svd.S)
            parts.setdefault(f"right{number}", []).append(projected(stack, "in", size, seed))
        if advance is not None:
            advance(len(block))
    rank = max((part.shape[-1] for arrays in parts.values() for part in arrays), default=0)
    return {name: np.concatenate([_widened(part, rank) for part in arrays]) for name, arrays in parts.items()}


def _widened(array: NDArray[Any], rank: int) -> NDArray[Any]:
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, rank - array.shape[-1])])
