"""Samples block by block, each checked against the structure that a model is made for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from lorascope.adapter import Adapter
from lorascope.errors import PredictorError
from lorascope.predict.model import Sample, Structure

BLOCK = 64


def blocks_of(samples: Iterable[Sample], structure: Structure) -> Iterator[list[Adapter]]:
    """The adapters in blocks of at most 64, in order; only one block is open at a time."""
    iterator = iter(samples)
    while block := [checked(sample.read(), structure) for sample in islice(iterator, BLOCK)]:
        yield block


def checked(adapter: Adapter, structure: Structure) -> Adapter:
    """The adapter, if it has the very sites that the structure names.

    Raises:
        PredictorError: naming the first missing, foreign or differently shaped sites.
    """
    expected = structure.sites
    missing = [name for name in expected if name not in adapter]
    foreign = [name for name in adapter if name not in expected]
    if missing or foreign:
        raise PredictorError(
            "the predictor was made for adapters of other layers",
            file=adapter.provenance.path,
            expected=f"{len(expected)} sites such as {', '.join(list(expected)[:2])}",
            found=f"{len(adapter)} sites, {len(missing)} of them missing and {len(foreign)} foreign"
            + (f", such as {foreign[0]}" if foreign else ""),
            hint="fit a predictor on adapters of the same base and target layers",
        )
    for name, shape in expected.items():
        if adapter[name].shape != tuple(shape):
            raise PredictorError(
                "the predictor was made for adapters of another shape",
                file=adapter.provenance.path,
                key=name,
                expected=list(shape),
                found=list(adapter[name].shape),
                hint="is this adapter for another base model?",
            )
    return adapter
