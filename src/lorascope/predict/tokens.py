"""Adapters as the tokens of their sites: singular vectors under seeded projections, and singular values.

Small layers go by QR in float64. Layers of ``LARGE`` rows and columns or more go by Gram matrices in float32 where the
file holds no more than that and the condition κ of the factors allows it; where it does not, by Gram matrices in
float64; and where κ is beyond that too, by QR. eps κ² ≤ 6e-4 in the first case and eps κ ≤ 6e-4 in the second bound, up
to a small factor, what the weakest direction is off by, and weak directions hardly count in any kernel. Adapters
stream in blocks of sites: no more than ``NUMBERS`` entries of factors are widened at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, LowRank, Update
from lorascope.features.projection import projected, projections
from lorascope.predict.blocks import BLOCK, checked
from lorascope.predict.kernel import Sites, Tokens
from lorascope.predict.model import Inputs, Sample, Structure, stacks_of
from lorascope.symmetry import pad_rank, stack_adapters
from lorascope.symmetry.gram import Products, Projected, projected_svd

NUMBERS = 4_000_000
"""32 MB in float64."""
LARGE = 1024
LIMIT, WIDE_LIMIT = 200.0, 1e4
"""The bound of κ up to which Gram matrices in float32 are taken, and in float64; it is about twice κ at rank 16."""


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
            chunks = [_tokens(block, chunk, shape, size, seed, exact) for chunk in _chunks(block, names, shape)]
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


def _chunks(block: Sequence[Adapter], names: Sequence[str], shape: tuple[int, int]) -> Iterator[Sequence[str]]:
    rank = max(adapter[name].rank for adapter in block for name in names)
    step = max(1, NUMBERS // max(1, len(block) * rank * sum(shape)))
    yield from (names[start : start + step] for start in range(0, len(names), step))


def _tokens(
    block: Sequence[Adapter], names: Sequence[str], shape: tuple[int, int], size: int, seed: int, exact: int
) -> Tokens:
    if min(shape) < LARGE or not all(_is_narrow(adapter, name) for adapter in block for name in names):
        return _by_qr(block, names, size, seed, exact)
    found, scales = _by_gram(block, names, size, seed, np.float32)
    _mend(found, LIMIT, lambda places: _by_gram(block, [names[i] for i in places], size, seed, np.float64)[0])
    signs = np.where(scales < 0, -1.0, 1.0)[..., None, None]
    tokens = Tokens(signs * found.left, np.abs(scales)[..., None] * found.S, found.right)
    for place in np.flatnonzero((found.condition > WIDE_LIMIT).any(axis=0)).tolist():
        by_qr = _by_qr(block, [names[place]], size, seed, exact)
        for whole, one in zip(tokens, by_qr, strict=True):
            whole[:, place] = _widened(one, found.S.shape[-1])[:, 0]
    return tokens


def _mend(found: Projected, limit: float, again: Callable[[list[int]], Projected]) -> None:
    """Replace the sites whose condition is beyond the limit in any adapter of the block."""
    places = np.flatnonzero((found.condition > limit).any(axis=0)).tolist()
    if places:
        for whole, part in zip(found, again(places), strict=True):
            whole[:, places] = part


def _by_gram(
    block: Sequence[Adapter], names: Sequence[str], size: int, seed: int, gram: DTypeLike
) -> tuple[Projected, NDArray[np.float64]]:
    """By products in float32, with Gram matrices in ``gram``; for scale 1, and the scales [n, S]."""
    rank = max(adapter[name].rank for adapter in block for name in names)
    rows = [[_products(adapter[name], name, rank, size, seed, gram) for name in names] for adapter in block]
    stacked = (np.stack([np.stack([one[part] for one, _ in row]) for row in rows]) for part in range(4))
    return projected_svd(Products(*stacked)), np.asarray([[scale for _, scale in row] for row in rows])


def _products(update: Update, name: str, rank: int, size: int, seed: int, gram: DTypeLike) -> tuple[Products, float]:
    """One site's products, ranks padded; and its scale."""
    B, A, scale = update.factors(np.float32)
    B, A = pad_rank(B, A, rank)
    P, Q = (_projection(name, side, height(size, n), n, seed) for side, n in (("out", len(B)), ("in", A.shape[1])))
    products = Products.of(B, A, P, Q)
    if gram == np.float64:
        B, A = B.astype(np.float64), A.astype(np.float64)
        products = products._replace(G=B.T @ B, K=A @ A.T)
    return products, scale


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


@lru_cache(maxsize=256)
def _projection(site: str, side: str, size: int, n: int, seed: int) -> NDArray[np.float32]:
    """One projection in float32, kept: 64 sites of 4096 take 64 MiB at size 64."""
    return projections([site], side, size, n, seed=seed)[0].astype(np.float32)


def _widened(array: NDArray[Any], rank: int) -> NDArray[Any]:
    if array.shape[-1] == rank:
        return array
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, rank - array.shape[-1])])
