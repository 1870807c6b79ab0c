"""Tokens of large layers by Gram matrices, from one pass over the stored numbers: each factor is widened once, into
room that a cache holds, and gives its products with the projection and with itself.

All products are in float32. The Gram matrix of a factor is computed again in float64 where the condition κ of its
columns, at unit length, asks for it; where κ is beyond that too, the site is named to the caller, who takes QR.
eps κ² ≤ 6e-4 in the first case (κ is about half of its bound) and eps κ ≤ 6e-4 in the second bound, up to a small
factor, what the weakest direction is off by, and weak directions hardly count in any kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter, LowRank
from lorascope.adapter.half import BEYOND, singles
from lorascope.features.projection import sketch_of
from lorascope.predict.kernel import Tokens
from lorascope.symmetry.gram import Root, projected_svd
from lorascope.symmetry.stack import factors_of

LIMIT, WIDE_LIMIT = 200.0, 1e4
"""The bound of κ up to which Gram matrices in float32 are taken, and in float64; it is two to three times κ."""

TURNED = 2048
"""Columns that are turned at once, by a product with the identity: exact, and in half the time of a copy by NumPy."""

SIDES = ("out", "in")


def tokens_by_gram(
    block: Sequence[Adapter], names: Sequence[str], heights: tuple[int, int], seed: int
) -> tuple[Tokens, list[int]]:
    """The tokens [n, S, …] of sites of one shape, and the places of the sites whose tokens mean nothing.

    Args:
        block, names: adapters, and sites that all have as ``LowRank`` of one shape, stored in 4 bytes or less a number.
        heights: h of both sides, which are of ``projection.LARGE`` rows or more.
        seed: of the projections.

    Raises:
        AdapterError: where a number is not finite.
    """
    rank = max(1, *(adapter[name].rank for adapter in block for name in names))
    room = np.empty((2, rank * max(block[0][names[0]].shape)), np.float32)
    seen, grams = _products(block, names, heights, seed, rank, room)
    left, right = (Root(*parts) for parts in zip(*_roots(block, names, grams, room), strict=True))
    found = projected_svd(seen[0], seen[1], left, right)
    scales = np.asarray([[adapter[name].scale for name in names] for adapter in block])
    signs = np.where(scales < 0, -1.0, 1.0)[..., None, None]
    tokens = Tokens(signs * found.left, np.abs(scales)[..., None] * found.S, found.right)
    is_sound = found.condition <= WIDE_LIMIT
    for products in seen:  # sums in float32 of numbers that it hardly holds
        is_sound &= np.isfinite(products).all(axis=(-2, -1))
    return tokens, np.flatnonzero(~is_sound.all(axis=0)).tolist()


def _products(
    block: Sequence[Adapter],
    names: Sequence[str],
    heights: tuple[int, int],
    seed: int,
    rank: int,
    room: NDArray[np.float32],
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """(P B, Q Aᵀ) [n, S, h, rank], and BᵀB and AAᵀ as [2, n, S, rank, rank]; zeros beyond the rank of a site."""
    counts = len(block), len(names)
    seen = [np.zeros((*counts, h, rank), np.float32) for h in heights]
    grams = np.zeros((2, *counts, rank, rank), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, adapter in enumerate(block):
            for j, name in enumerate(names):
                for side, factor in enumerate(_factors(adapter, name)):
                    X, h, (n, own) = _single(factor, room), heights[side], factor.shape
                    sketch = sketch_of(name, SIDES[side], h, n, seed) if h < n else None
                    seen[side][i, j, :, :own] = X if sketch is None else sketch.of(X)
                    grams[side, i, j, :own, :own] = X.T @ X
    lengths = np.diagonal(grams, axis1=-2, axis2=-1)
    for _, i, j in np.argwhere(~(lengths < BEYOND**2).all(axis=-1)).tolist():
        factors_of(block[i], names[j], np.float32)  # says so where a number is not finite
    return seen, grams


def _factors(adapter: Adapter, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """B and Aᵀ, [n, rank], as they are stored."""
    update = cast("LowRank", adapter[name])
    return update.B, update.A.T


def _single(factor: NDArray[Any], room: NDArray[np.float32]) -> NDArray[np.float32]:
    """A factor [n, rank] in float32, row by row in memory; ``room`` [2, n · rank] may hold it until the next one."""
    first, second = room[0, : factor.size], room[1, : factor.size]
    if factor.flags.c_contiguous:
        first = first.reshape(factor.shape)
        return singles(factor, first) if factor.dtype == np.float16 else factor.astype(np.float32, copy=False)
    turned = factor.T
    n, rank = factor.shape
    first, second = first.reshape(rank, n), second.reshape(n, rank)
    turned = singles(turned, first) if turned.dtype == np.float16 else turned.astype(np.float32, copy=False)
    for start in range(0, n, TURNED):
        rows = slice(start, start + TURNED)
        np.matmul(turned[:, rows].T, _identity(rank), out=second[rows])
    return second


@cache
def _identity(rank: int) -> NDArray[np.float32]:
    return np.eye(rank, dtype=np.float32)


def _roots(
    block: Sequence[Adapter], names: Sequence[str], grams: NDArray[np.float32], room: NDArray[np.float32]
) -> Root:
    """The roots of the Gram matrices [2, n, S, rank, rank], of those in float64 where float32 does not do."""
    roots = Root.of(grams)
    places = np.argwhere(roots.condition > LIMIT)
    if len(places):
        wide = np.zeros((len(places), *grams.shape[-2:]))
        for place, (side, i, j) in enumerate(places.tolist()):
            X = _single(_factors(block[i], names[j])[side], room).astype(np.float64)
            wide[place, : X.shape[1], : X.shape[1]] = X.T @ X
        for part, own in zip(roots, Root.of(wide), strict=True):
            part[tuple(places.T)] = own
    return roots
