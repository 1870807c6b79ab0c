"""Nearest sketches among very many: exact in NumPy, approximate by a vector library that keeps them compressed.

    Vectors.exact(sketches)        every sketch is looked at; 100,000 of them are 100 MB
    Vectors.compressed(sketches)   faiss: √n lists by k-means, a byte a number, 1/16 of the lists looked into

Source: Douze et al. (2024), The Faiss library, arXiv 2401.08281.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import LorascopeError, MissingExtraError
from lorascope.retrieve.finding import distances_to

LISTED = 1024
"""Fewer sketches than this are not worth lists."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """Sketches that can be searched: ``nearest`` gives the places [k] of the k nearest to one, nearest first."""

    count: int
    _search: Callable[[NDArray[np.float32], int], NDArray[np.int64]]

    @classmethod
    def exact(cls, sketches: NDArray[np.float32]) -> Vectors:
        """Every one of [n, 256] is looked at.

        >>> vectors = Vectors.exact(np.eye(3, 256, dtype=np.float32))
        >>> vectors.nearest(np.eye(3, 256)[1], 1)
        array([1])
        """

        def search(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
            apart = distances_to(sketches, values.astype(np.float64))
            some = np.argpartition(apart, k - 1)[:k]
            return some[np.argsort(apart[some], kind="stable")]

        return cls(len(sketches), search)

    @classmethod
    def compressed(cls, sketches: NDArray[np.float32]) -> Vectors:
        """Few of [n, 256] are looked at, each of a byte a number: some of the nearest may be missed.

        Raises:
            MissingExtraError: without faiss.
            LorascopeError: for fewer than ``LISTED`` sketches.
        """
        if len(sketches) < LISTED:
            raise LorascopeError("too few to be worth lists", expected=f"at least {LISTED}", found=len(sketches))
        try:
            faiss: Any = importlib.import_module("faiss")
        except ModuleNotFoundError as error:
            raise MissingExtraError.of("faiss", "scale", "an approximate search of compressed sketches") from error
        lists = int(math.sqrt(len(sketches)))
        index = faiss.index_factory(sketches.shape[1], f"IVF{lists},SQ8")
        data = np.ascontiguousarray(sketches, np.float32)
        step = max(1, len(data) // (64 * lists))
        index.train(data[::step])
        index.add(data)
        index.nprobe = max(1, lists // 16)

        def search(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
            _, places = index.search(values[None], k)
            return places[0][places[0] >= 0]  # fewer where the lists hold fewer

        return cls(len(sketches), search)

    def nearest(self, values: NDArray[Any], k: int) -> NDArray[np.int64]:
        """The places of the k nearest to a sketch [256].

        Raises:
            LorascopeError: where k is less than 1.
        """
        if k < 1:
            raise LorascopeError("so many cannot be found", key="k", expected="at least 1", found=k)
        if not self.count:
            return np.zeros(0, np.int64)
        return self._search(np.asarray(values, np.float32), min(k, self.count))
