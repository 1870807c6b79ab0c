"""What a merge method is, and the family of them.

A method makes one update of several, site by site. What it gives is a ``Product`` (factors of any rank, exact) or
``Rows`` (a matrix of full rank, row block by row block); cutting it down to a rank is the business of ``merging``, and
the error that it reports is against what the method gave.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lorascope.family import Family
from lorascope.symmetry.common_sites import Pair

Invariance = Literal["GL(r)", "none"]


class Product(NamedTuple):
    """ΔW = B A, [out, rank] and [rank, in]; the rank may be 0, or larger than min(out, in)."""

    B: NDArray[Any]
    A: NDArray[Any]


class Rows(NamedTuple):
    """ΔW [out, in] as a function of a slice of its rows, which gives the same numbers each time it is asked."""

    shape: tuple[int, int]
    rows: Callable[[slice], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Parts:
    """One site of the n adapters.

    Args:
        site: its name, for messages and for the seed of what is random.
        pairs: n factor pairs [out, r_i], [r_i, in]; r_i = 0 where an adapter has nothing there.
        weights: [n].
        seed: of the whole merge; ``generator`` is the site's own.
    """

    site: str
    pairs: Sequence[Pair]
    weights: NDArray[np.float64]
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.pairs[0].B.shape[0], self.pairs[0].A.shape[1]

    @property
    def counting(self) -> Parts:
        """The same without the adapters of weight 0, for what is made of all of them alike; as it is where all have it.

        Of random numbers by place: places are those that are left.
        """
        kept = np.flatnonzero(self.weights)
        if not len(kept):
            return self
        return replace(self, pairs=[self.pairs[int(k)] for k in kept], weights=self.weights[kept])

    def generator(self, number: int = 0) -> np.random.Generator:
        """The random numbers of this site (and of one adapter): the same whatever the order of the sites."""
        return np.random.default_rng([self.seed, number, *self.site.encode()])


@runtime_checkable
class Method(Protocol):
    """A member: a frozen dataclass whose fields are its options.

    ``is_symmetric``: whether the order of adapters and their weights changes nothing. ``is_idempotent``: whether n
    copies of one adapter with weights that sum to 1 give that adapter. ``is_experimental``: whether no run on real
    adapters is on record in ``experiments/merging``.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    reference: ClassVar[str]
    invariance: ClassVar[Invariance]
    is_symmetric: ClassVar[bool]
    is_idempotent: ClassVar[bool]
    is_experimental: ClassVar[bool]

    def default_weights(self, count: int) -> NDArray[np.float64]:
        """The weights [count] that are taken where none are given."""
        ...

    def check(self, count: int) -> None:
        """Refuse a number of adapters that the method has no meaning for.

        Raises:
            LorascopeError: saying how many it takes.
        """
        ...

    def check_sites(self, sites: Sequence[str]) -> None:
        """Refuse sites that the method has no meaning for.

        Raises:
            LorascopeError: saying which it needs.
        """
        ...

    def bias_weights(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The weights [n] with which changes of a bias are summed; None where the method does not say."""
        ...

    def __call__(self, parts: Parts) -> Product | Rows:
        """The merged update of one site."""
        ...


METHODS: Family[type[Method]] = Family("merge method", "lorascope.merge.methods", "METHOD", "lorascope.merge")


@dataclass(frozen=True)
class Base:
    """What members share: any number of adapters, each with weight 1/n."""

    invariance: ClassVar[Invariance] = "GL(r)"
    is_symmetric: ClassVar[bool] = True
    is_idempotent: ClassVar[bool] = True
    is_experimental: ClassVar[bool] = False

    def default_weights(self, count: int) -> NDArray[np.float64]:
        """1/n each."""
        return np.full(count, 1.0 / count)

    def check(self, count: int) -> None:
        """Any number will do."""
        del count

    def check_sites(self, sites: Sequence[str]) -> None:
        """Any sites will do."""
        del sites

    def bias_weights(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """None."""
        del weights
        return None


class WeightedSum(Base, ABC):
    """Methods that are a weighted sum of the updates, exactly: the factors side by side."""

    @abstractmethod
    def factors(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each update is multiplied by, [n], given the weights."""

    def bias_weights(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """As the updates."""
        return self.factors(weights)

    def __call__(self, parts: Parts) -> Product:
        """[f_1 B_1, …, f_n B_n] and [A_1; …; A_n]."""
        return concatenated(parts.pairs, self.factors(parts.weights))


def concatenated(pairs: Sequence[Pair], weights: Sequence[float] | NDArray[np.float64]) -> Product:
    """Σ w_i B_i A_i as one product, exactly: the factors side by side, the weights folded into B.

    >>> one = Pair(np.ones((2, 1)), np.ones((1, 2)))
    >>> B, A = concatenated([one, one], [0.5, -2.0])
    >>> B @ A
    array([[-1.5, -1.5],
           [-1.5, -1.5]])
    """
    B = [pair.B * np.asarray(weight, pair.B.dtype) for pair, weight in zip(pairs, weights, strict=True)]
    return Product(np.concatenate(B, axis=1), np.concatenate([pair.A for pair in pairs], axis=0))
