"""Adapters as the tokens of their sites: singular vectors under seeded projections, and singular values.

Layers with fewer than ``LARGE`` rows or columns go by QR in float64, and so do factors stored in more than 4 bytes a
number; all others by Gram matrices (``large_layers``) where these are exact enough. Adapters stream in blocks, and
blocks in runs of sites: no more than ``NUMBERS`` entries of factors, padded to the largest rank of a block, are widened
at once, nor of Gram matrices made, but for those of one site of one adapter. Where who calls can
read them site by site, more than ``IN_MEMORY`` numbers are stored in a temporary file (``stored_tokens``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter, LowRank
from lorascope.features.projection import LARGE, projected, projections
from lorascope.predict.blocks import BLOCK, checked
from lorascope.predict.kernel import Sites, Tokens
from lorascope.predict.large_layers import tokens_by_gram
from lorascope.predict.model import Inputs, Sample, Structure, stacks_of
from lorascope.predict.stored_tokens import TokenFile
from lorascope.symmetry import stack_adapters

NUMBERS = 4_000_000
"""32 MB in float64."""

IN_MEMORY = 1 << 26
"""Numbers that tokens of many adapters may have in memory, 512 MB: each model that is fitted on them copies its own."""


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
    may_store: bool = False,
) -> Inputs:
    """``left0`` [n, S, h, k] = P U, ``S0`` [n, S, k], ``right0`` [n, S, h′, k] = Q V for the first shape, and so on.

    k is the largest rank among the samples; absent directions are zero. h = min(size, out), and ``out`` itself, with
    nothing projected, where that is no more than ``exact``; half of ``size`` on sides of ``LARGE`` or more. Where they
    ``may_store`` and the sides have more than ``IN_MEMORY`` numbers, these are ``StoredTokens`` instead of arrays.

    Raises:
        PredictorError: where there is no room for these.
    """
    given = list(samples)
    numbers = len(given) * _numbers(structure, size, exact)
    file = TokenFile(numbers) if may_store and numbers > IN_MEMORY and len(given) > 1 else None
    whole: dict[str, NDArray[Any]] = {}
    start, largest = 0, 0
    for block in _blocks(given, structure):
        rows = slice(start, start + len(block))
        for number, (shape, names) in enumerate(stacks_of(structure).items()):
            place = 0
            for tokens in _tokens(block, names, shape, size, seed, exact):
                sites = slice(place, place + tokens.S.shape[1])
                largest = max(largest, tokens.S.shape[-1])
                for part, array in zip(("left", "S", "right"), tokens, strict=True):
                    name, rank = f"{part}{number}", array.shape[-1]
                    if file is not None and part != "S":
                        file.put(name, start, place, array)
                        continue
                    if name not in whole:  # written in place: joining blocks at the end would take the memory twice
                        whole[name] = np.zeros((len(given), len(names), *array.shape[2:]))
                    whole[name] = _widened(whole[name], max(rank, whole[name].shape[-1]))
                    whole[name][rows, sites, ..., :rank] = array
                place = sites.stop
        start = rows.stop
        if advance is not None:
            advance(len(block))
    stored = {} if file is None else cast("Inputs", file.tokens(len(given), largest))
    return stored | {name: _widened(array, largest) for name, array in whole.items()}


def _numbers(structure: Structure, size: int, exact: int) -> int:
    """How many numbers the two sides of one adapter have, at the rank of the structure."""
    rows = [min(height(size, side, exact), side) for shape in structure.sites.values() for side in shape]
    return structure.rank * sum(rows)


def _blocks(samples: Iterable[Sample], structure: Structure) -> Iterator[list[Adapter]]:
    """The adapters in blocks of at most ``BLOCK``, fewer where they are large."""
    sides = sum(sum(shape) for shape in structure.sites.values())
    block: list[Adapter] = []
    largest = 1
    for sample in samples:
        adapter = checked(sample.read(), structure)
        rank = max(update.rank for update in adapter.values())
        if block and (len(block) == BLOCK or (len(block) + 1) * max(largest, rank) * sides > NUMBERS):
            yield block
            block, largest = [], 1
        block, largest = [*block, adapter], max(largest, rank)
    if block:
        yield block


def _tokens(
    block: Sequence[Adapter], names: Sequence[str], shape: tuple[int, int], size: int, seed: int, exact: int
) -> Iterator[Tokens]:
    """The tokens of the sites of one shape, one or more blocks of sites after another."""
    if min(shape) >= LARGE:
        yield _joined([_of_large(adapter, names, shape, size, seed, exact) for adapter in block], axis=0)
        return
    rank = max(1, *(adapter[name].rank for adapter in block for name in names))
    yield from (_by_qr(block, run, size, seed, exact) for run in _runs(names, len(block) * rank * sum(shape)))


def _of_large(
    adapter: Adapter, names: Sequence[str], shape: tuple[int, int], size: int, seed: int, exact: int
) -> Tokens:
    """The tokens [1, S, …] of large sites of one shape.

    Of one adapter: which way its sites go, and to what rank they are padded, must not depend on who is read with it.
    """
    rank = max(1, *(adapter[name].rank for name in names))
    if not all(_is_narrow(adapter, name) for name in names):
        return _joined([_by_qr([adapter], run, size, seed, exact) for run in _runs(names, rank * sum(shape))])
    out, in_ = (min(height(size, n, exact), n) for n in shape)
    found: list[Tokens] = []
    for run in _runs(names, 2 * rank * rank):
        tokens, unsound = tokens_by_gram([adapter], run, (out, in_), seed)
        for place in unsound:
            by_qr = _by_qr([adapter], [run[place]], size, seed, exact)
            for whole, one in zip(tokens, by_qr, strict=True):
                whole[:, place] = _widened(one, tokens.S.shape[-1])[:, 0]
        found.append(tokens)
    return _joined(found)


def _joined(parts: Sequence[Tokens], axis: int = 1) -> Tokens:
    """Tokens of some sites after those of others, or of some adapters (``axis`` 0), with zeros to the largest rank."""
    rank = max(part.S.shape[-1] for part in parts)
    return Tokens(*(np.concatenate([_widened(one, rank) for one in own], axis) for own in zip(*parts, strict=True)))


def _runs(names: Sequence[str], numbers: int) -> Iterator[Sequence[str]]:
    """The sites in runs of at most ``NUMBERS``, where each takes so many numbers."""
    step = max(1, NUMBERS // numbers)
    yield from (names[start : start + step] for start in range(0, len(names), step))


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
                reduced[f"{part}{number}"] = P @ np.asarray(inputs[f"{part}{number}"])
    return reduced


def _is_narrow(adapter: Adapter, name: str) -> bool:
    """Whether the factors are stored in float32 or less, so that nothing is lost by computing in it."""
    update = adapter[name]
    return isinstance(update, LowRank) and max(update.B.dtype.itemsize, update.A.dtype.itemsize) <= 4


def _widened(array: NDArray[Any], rank: int) -> NDArray[Any]:
    if array.shape[-1] == rank:
        return array
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, rank - array.shape[-1])])
