"""Samples block by block, each brought to the structure that a model is made for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import PredictorError
from lorascope.predict.model import Sample, Structure

BLOCK = 64


def blocks_of(samples: Iterable[Sample], structure: Structure) -> Iterator[list[Adapter]]:
    """The adapters in blocks of at most 64, in order; only one block is open at a time."""
    iterator = iter(samples)
    while block := [checked(sample.read(), structure) for sample in islice(iterator, BLOCK)]:
        yield block


def checked(adapter: Adapter, structure: Structure) -> Adapter:
    """The adapter with the very sites that the structure names: one that it lacks is ΔW = 0 there, exactly.

    Raises:
        PredictorError: naming the first foreign or differently shaped site.
    """
    expected = structure.sites
    foreign = [name for name in adapter if name not in expected]
    if foreign or not len(adapter):
        raise PredictorError(
            "the predictor was made for adapters of other layers",
            file=adapter.provenance.path,
            expected=f"sites among {len(expected)} such as {', '.join(list(expected)[:2])}",
            found=f"{len(adapter)} sites, {len(foreign)} of them foreign"
            + (f", such as {foreign[0]}" if foreign else ""),
            hint="fit a predictor on adapters of the same base and target layers",
        )
    for name, update in adapter.items():
        if update.shape != tuple(expected[name]):
            raise PredictorError(
                "the predictor was made for adapters of another shape",
                file=adapter.provenance.path,
                key=name,
                expected=list(expected[name]),
                found=list(update.shape),
                hint="is this adapter for another base model?",
            )
    if len(adapter) == len(expected):
        return adapter
    return adapter.with_sites({name: adapter.get(name) or _nothing(shape) for name, shape in expected.items()})


def _nothing(shape: tuple[int, int]) -> LowRank:
    """ΔW = 0."""
    return LowRank(np.zeros((shape[0], 1), np.float32), np.zeros((1, shape[1]), np.float32))
