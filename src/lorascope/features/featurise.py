"""Adapters to feature vectors: one matrix per feature, streamed in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.features.feature import Feature
from lorascope.symmetry import stack_adapters

BLOCK_NUMBERS = 8_000_000
"""How many factor entries are widened at once: 64 MB in float64."""


def featurise(
    adapters: Iterable[Adapter],
    features: Sequence[Feature],
    *,
    sites: Sequence[str],
    advance: Callable[[int], Any] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Each feature's values over all sites, as name → [adapters, columns] in float64.

    The columns of a feature run over the sites' shapes in order of first occurrence, in them over the sites in
    the order given, in them over the feature's own components.

    Args:
        adapters: any number; read and dropped block by block, so an iterator that reads lazily is best.
        features: members of the family, with their parameters set.
        sites: the sites that all adapters must have.
        advance: called with the number of adapters done.

    >>> import numpy as np
    >>> from lorascope.adapter import Adapter, LowRank
    >>> from lorascope.features import FEATURES
    >>> adapter = Adapter({"q": LowRank(np.eye(3, 1), np.eye(1, 2))})
    >>> featurise([adapter], [FEATURES["log-norm"]()], sites=["q"])["log-norm"].round(9)
    array([[0.]])
    """
    blocks: dict[str, list[NDArray[np.float64]]] = {feature.name: [] for feature in features}
    for block in _blocks(iter(adapters), sites):
        for name, values in _featurise_block(block, features, sites).items():
            blocks[name].append(values)
        if advance is not None:
            advance(len(block))
    return {name: np.concatenate(parts) if parts else np.zeros((0, 0)) for name, parts in blocks.items()}


def _featurise_block(
    block: Sequence[Adapter], features: Sequence[Feature], sites: Sequence[str]
) -> Mapping[str, NDArray[np.float64]]:
    columns: dict[str, list[NDArray[np.float64]]] = {feature.name: [] for feature in features}
    for stack in stack_adapters(block, sites=sites, dtype=np.float64):
        for feature in features:
            columns[feature.name].append(np.asarray(feature(stack)).reshape(len(block), -1))
    return {name: np.concatenate(parts, axis=1) for name, parts in columns.items()}


def _blocks(adapters: Iterator[Adapter], sites: Sequence[str]) -> Iterator[list[Adapter]]:
    for first in adapters:
        numbers = sum(first[s].rank * sum(first[s].shape) for s in sites if s in first)
        yield [first, *islice(adapters, max(0, min(64, BLOCK_NUMBERS // max(numbers, 1)) - 1))]
