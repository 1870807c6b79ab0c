"""Samples block by block, each brought to the structure that a model is made for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import PredictorError
from lorascope.predict.model import Sample, Structure
from lorascope.symmetry import SiteStack, stack_adapters
from lorascope.symmetry.stack import largest_entries

BLOCK = 64

LARGEST = 1e12
"""Of scale · max|B| · max|A| for a network: float32 holds the sum of its squares over millions of entries."""


def blocks_of(samples: Iterable[Sample], structure: Structure) -> Iterator[list[Adapter]]:
    """The adapters in blocks of at most 64, in order; only one block is open at a time."""
    iterator = iter(samples)
    while block := [checked(sample.read(), structure) for sample in islice(iterator, BLOCK)]:
        yield block


def network_stacks(block: Sequence[Adapter], structure: Structure) -> list[SiteStack]:
    """The stacks of a block for a model that is trained in float32.

    Raises:
        PredictorError: where an update is so large that a network overflows, naming the adapter and the site.
    """
    stacks = stack_adapters(block, sites=list(structure.sites))
    for stack in stacks:
        sizes = largest_entries(stack.B) * largest_entries(stack.A)
        for place, site in np.argwhere(sizes >= LARGEST).tolist():
            raise PredictorError(
                "the update is too large for a network, which is trained in float32",
                file=block[place].provenance.path,
                key=stack.names[site],
                expected=f"scale · max|B| · max|A| below {LARGEST:.0e}",
                found=f"{sizes[place, site]:.3g}",
                hint="leave the adapter out, or use a model without a network, such as kernels or ridge",
            )
    return stacks


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
