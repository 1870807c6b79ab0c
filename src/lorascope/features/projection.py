"""Seeded random projections, the same on every machine and for every version of every library.

P is [h, n] with entries ±1/√h from the raw bits of a Philox generator, keyed by a hash of the whole of (seed, site,
side, h, n). E[PᵀP] = I, so inner products of projected vectors estimate those of the vectors, with relative error
about 1/√h (Achlioptas 2003). Where h ≥ n nothing is gained by projecting and P is the identity: exact.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from jaxtyping import Float, Int8

from lorascope.symmetry import SiteStack
from lorascope.symmetry.arrays import Array, like, transpose


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
    return np.stack([_signs(site, side, size, n, seed) for site in sites]) / np.sqrt(size)


@lru_cache(maxsize=1024)
def _signs(site: str, side: str, size: int, n: int, seed: int) -> Int8[np.ndarray, "size n"]:
    """The signs of one projection, kept as bytes: 64 sites of 4096 take 16 MB a side."""
    digest = blake2b(f"{seed}\0{side}\0{size}\0{n}\0{site}".encode(), digest_size=16).digest()
    words = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(-(-size * n // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=size * n, bitorder="little")
    return (1 - 2 * bits.astype(np.int8)).reshape(size, n)


def projected(stack: SiteStack, side: str, size: int, seed: int) -> Array:
    """P U (``side="out"``) or Q V (``"in"``) at every site, [N, S, h, k]; computed once for all features of a stack."""
    key = ("projected", side, size, seed)
    if key not in stack.cache:
        basis = stack.svd.U if side == "out" else transpose(stack.svd.Vh)
        n = basis.shape[-2]
        is_exact = size >= n
        P = None if is_exact else projections(stack.names, side, size, n, seed=seed)
        stack.cache[key] = basis if P is None else like(P, basis) @ basis
    return stack.cache[key]
