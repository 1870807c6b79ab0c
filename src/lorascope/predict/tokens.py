"""Adapters as the tokens of their sites: singular vectors under seeded projections, and singular values.

Layers with fewer than ``LARGE`` rows or columns go by QR in float64, and so do factors stored in more than 4 bytes a
number; all others by Gram matrices (``large_layers``) where these are exact enough. Adapters stream in blocks, and by
QR in blocks of sites: no more than ``NUMBERS`` entries of factors are widened at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter, LowRank
from lorascope.features.projection import LARGE, projected, projections
from lorascope.predict.blocks import BLOCK, checked
from lorascope.predict.kernel import Sites, Tokens
from lorascope.predict.large_layers import tokens_by_gram
from lorascope.predict.model import Inputs, Sample, Structure, stacks_of
from lorascope.symmetry import stack_adapters

NUMBERS = 4_000_000
"""32 MB in float64."""


def sites_of(structure: Structure) -> Sites:
    """The sites, in the order of the stacks."""
    stacks = stacks_of(structure).values()
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
    exact: int = 0,
    advance: Callable[[int], Any] | None = None,
) -> Inputs:
    """``left0`` [n, S, h, k] = P U, ``S0`` [n, S, k], ``right0`` [n, S, h′, k] = Q V for the first shape, and so on.

    k is the largest rank among the samples; absent directions are zero. h = min(size, out), and ``out`` itself, with
    nothing projected, where that is no more than ``exact``; half of ``size`` on sides of ``LARGE`` or more.
    """
    parts: dict[str, list[NDArray[Any]]] = {}
    for block in _blocks(samples, structure):
        for number, (shape, names) in enumerate(stacks_of(structure).items()):
            chunks = list(_tokens(block, names, shape, size, seed, exact))
            rank = max(chunk.S.shape[-1] for chunk in chunks)
            for name, arrays in zip(("left", "S", "right"), zip(*chunks, strict=True), strict=True):
                joined = np.concatenate([_widened(array, rank) for array in arrays], axis=1)
                parts.setdefault(f"{name}{number}", []).append(joined)
        if advance is not None:
            advance(len(block))
    rank = max((part.shape[-1] for arrays in parts.values() for part in arrays), default=0)
    return {name: np.concatenate([_widened(part, rank) for part in arrays]) for name, arrays in parts.items()}


def _blocks(samples: Iterable[Sample], structure: Structure) -> Iterator[list[Adapter]]:
    """The adapters in blocks of at most ``BLOCK``, fewer where they are large."""
    iterator = iter(samples)
    for sample in iterator:
        first = checked(sample.read(), structure)
        numbers = sum(update.rank * sum(update.shape) for update in first.values())
        more = max(0, min(BLOCK, NUMBERS // max(numbers, 1)) - 1)
        yield [first, *(checked(one.read(), structure) for one in islice(iterator, more))]


def _tokens(
    block: Sequence[Adapter], names: Sequence[str], shape: tuple[int, int], size: int, seed: int, exact: int
) -> Iterator[Tokens]:
    """The tokens of the sites of one shape, one or more blocks of sites after another."""
    if min(shape) < LARGE or not all(_is_narrow(adapter, name) for adapter in block for name in names):
        rank = max(adapter[name].rank for adapter in block for name in names)
        step = max(1, NUMBERS // max(1, len(block) * rank * sum(shape)))
        starts = range(0, len(names), step)
        yield from (_by_qr(block, names[start : start + step], size, seed, exact) for start in starts)
        return
    heights = height(size, shape[0], exact), height(size, shape[1], exact)
    tokens, unsound = tokens_by_gram(block, names, (min(heights[0], shape[0]), min(heights[1], shape[1])), seed)
    for place in unsound:
        by_qr = _by_qr(block, [names[place]], size, seed, exact)
        for whole, one in zip(tokens, by_qr, strict=True):
            whole[:, place] = _widened(one, tokens.S.shape[-1])[:, 0]
    yield tokens


def _by_qr(block: Sequence[Adapter], names: Sequence[str], size: int, seed: int, exact: int) -> Tokens:
    [stack] = stack_adapters(block, sites=names)
    out, in_ = (height(size, n, exact) for n in stack.shape)
    return Tokens(projected(stack, "out", out, seed), stack.svd.S, projected(stack, "in", in_, seed))


def height(size: int, n: int, exact: int = 0) -> int:
    """h of a side of n rows, if that is less than n."""
    if n <= exact:
        return n
    return size if n < LARGE else max(1, size // 2)


def sketched(inputs: Inputs, structure: Structure, *, size: int, seed: int) -> Inputs:
    """What ``tokens_of`` gives for no ``exact``, of tokens with exact sides."""
    reduced = dict(inputs)
    for number, (shape, names) in enumerate(stacks_of(structure).items()):
        for part, side, n in zip(("left", "right"), ("out", "in"), shape, strict=True):
            if inputs[f"{part}{number}"].shape[2] > height(size, n):
                P = projections(names, side, height(size, n), n, seed=seed)
                reduced[f"{part}{number}"] = P @ inputs[f"{part}{number}"]
    return reduced


def _is_narrow(adapter: Adapter, name: str) -> bool:
    """Whether the factors are stored in float32 or less, so that nothing is lost by computing in it."""
    update = adapter[name]
    return isinstance(update, LowRank) and max(update.B.dtype.itemsize, update.A.dtype.itemsize) <= 4


def _widened(array: NDArray[Any], rank: int) -> NDArray[Any]:
    if array.shape[-1] == rank:
        return array
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, rank - array.shape[-1])])
