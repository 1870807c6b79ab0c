"""Seeded random projections, the same on every machine and for every version of every library.

P is [h, n], from the raw bits of a Philox generator, keyed by a hash of the whole of (seed, site, side, h, n).
E[PᵀP] = I, so inner products of projected vectors estimate those of the vectors, with relative error about 1/√h.

    n < LARGE   dense signs: entries ±1/√h (Achlioptas 2003)
    n ≥ LARGE   a balanced count sketch: a random permutation deals the rows to h buckets of equal size, and each bucket
                is summed under random signs, so that a column of P is ±1 in one place. n additions instead of h n
    h ≥ n       the identity: exact, for nothing would be gained

With z = ⟨P x, P y⟩ and p = 1/h of dense signs, p ≤ 1/h, the chance that two rows share a bucket, of the sketch,

    E z = ⟨x, y⟩,    Var z = p (‖x‖²‖y‖² + ⟨x, y⟩² − 2 Σ x_i² y_i²)

for any x and y, also where they live on few rows or on rows at regular distances. What is rarer and larger in the
sketch are errors for vectors on a handful of rows: two of them share a bucket, or they do not.

Source: Charikar, Chen & Farach-Colton (2002), count sketch; Weinberger et al. (2009), feature hashing.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float, Int, Int8
from numpy.typing import NDArray

from lorascope.symmetry import SiteStack
from lorascope.symmetry.arrays import Array, like, namespace, transpose

LARGE = 1024
"""Rows from which on a side is sketched in buckets."""

VERSION = 2
"""Of the projections, saved with what was fitted on them. In version 1 large sides had dense signs as well."""


class Sketch(NamedTuple):
    """A balanced count sketch: ``rows`` [h, m] of each bucket, and their ``signs`` [h, 1, m].

    m = ⌈n/h⌉; where h does not divide n, the shorter buckets end with row 0 under the sign 0.
    """

    rows: Int[np.ndarray, "h m"]
    signs: Float[np.ndarray, "h 1 m"]

    def of(self, X: Array) -> Array:
        """P X [..., h, k] for X [..., n, k]."""
        if not isinstance(X, np.ndarray):
            return (like(self.signs, X) @ X[..., self.rows, :])[..., 0, :]
        given = cast("NDArray[Any]", X)
        return (self.signs.astype(given.dtype, copy=False) @ given.take(self.rows, axis=-2))[..., 0, :]

    def matrix(self, n: int) -> Float[np.ndarray, "h n"]:
        """P itself."""
        P = np.zeros((len(self.rows), n))
        np.add.at(P, (np.arange(len(P))[:, None], self.rows), self.signs[:, 0])
        return P


def projections(sites: Sequence[str], side: str, size: int, n: int, *, seed: int = 0) -> Float[np.ndarray, "sites h n"]:
    """One projection for each site, [sites, h, n] with h = min(size, n), float64.

    >>> P = projections(["q", "v"], "out", 4, 100)
    >>> P.shape, bool((P[0] != P[1]).any())
    ((2, 4, 100), True)
    >>> projections(["q"], "out", 4, 2)
    array([[[1., 0.],
            [0., 1.]]])
    """
    if size >= n:
        return np.tile(np.eye(n), (len(sites), 1, 1))
    if n >= LARGE:
        return np.stack([sketch_of(site, side, size, n, seed).matrix(n) for site in sites])
    return np.stack([signs(site, side, size, n, seed) for site in sites]) / np.sqrt(size)


@lru_cache(maxsize=4096)
def sketch_of(site: str, side: str, size: int, n: int, seed: int) -> Sketch:
    """The sketch of one side of a site to h = ``size`` < n buckets; kept: 64 sites of 4096 take 3 MB a side."""
    words = _words(site, side, size, n, seed, n + -(-n // 64))
    m = -(-n // size)
    rows, signs = np.zeros(m * size, np.intp), np.zeros(m * size, np.float32)
    rows[:n] = np.argsort(words[:n], kind="stable")
    signs[:n] = 1 - 2 * _bits(words[n:], n).astype(np.int8)
    dealt = (np.ascontiguousarray(array.reshape(m, size).T) for array in (rows, signs))
    return Sketch(next(dealt), next(dealt)[:, None])


@lru_cache(maxsize=1024)
def signs(site: str, side: str, size: int, n: int, seed: int) -> Int8[np.ndarray, "size n"]:
    """The signs ±1 of one projection [size, n], kept as bytes: 64 sites of 1,000 rows take 4 MB a side."""
    bits = _bits(_words(site, side, size, n, seed, -(-size * n // 64)), size * n)
    return (1 - 2 * bits.astype(np.int8)).reshape(size, n)


def _words(site: str, side: str, size: int, n: int, seed: int, count: int) -> NDArray[np.uint64]:
    """The first 64-bit words of the generator of one projection."""
    digest = blake2b(f"{seed}\0{side}\0{size}\0{n}\0{site}".encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(count)


def _bits(words: NDArray[np.uint64], count: int) -> NDArray[np.uint8]:
    return np.unpackbits(words.astype("<u8").view(np.uint8), count=count, bitorder="little")


def projected(stack: SiteStack, side: str, size: int, seed: int) -> Array:
    """P U (``side="out"``) or Q V (``"in"``) at every site, [N, S, h, k]; computed once for all features of a stack."""
    key = ("projected", side, size, seed)
    if key not in stack.cache:
        basis = stack.svd.U if side == "out" else transpose(stack.svd.Vh)
        stack.cache[key] = _seen(stack.names, basis, side, size, seed)
    return stack.cache[key]


def _seen(names: Sequence[str], basis: Array, side: str, size: int, seed: int) -> Array:
    n = basis.shape[-2]
    if size >= n:
        return basis
    if n < LARGE:
        return like(projections(names, side, size, n, seed=seed), basis) @ basis
    parts = [sketch_of(name, side, size, n, seed).of(basis[:, place]) for place, name in enumerate(names)]
    return namespace(basis).stack(parts, axis=1)
