"""What an invariant kernel is, and the family of them.

A kernel compares two adapters by features of ΔW at each site that no gauge changes. A *linear* one is the inner product
of the features, centred on the training adapters, site by site; a *radial* one looks at the features of all sites
together, standardised by the training adapters:

    linear    k_s(i, j) = ⟨φ_s(i) − φ̄_s, φ_s(j) − φ̄_s⟩ / mean ‖φ_s − φ̄_s‖²
    radial    k(i, j)   = exp(−‖z(i) − z(j)‖² / (2 ℓ² D)),     z: all sites' φ, standardised, D of them not constant

The features come from *tokens*: the singular vectors under the site's projections and the singular values. They may be
functions of them only that signs, rotations inside a cluster of equal values and vectors of σ = 0 leave alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lorascope.family import Family
from lorascope.features.feature import Change


class Tokens(NamedTuple):
    """One site of n adapters: ``left`` [n, h, k] = P U, ``S`` [n, k], ``right`` [n, h′, k] = Q V."""

    left: NDArray[Any]
    S: NDArray[Any]
    right: NDArray[Any]


@runtime_checkable
class Kernel(Protocol):
    """A member of the family: a frozen dataclass without state.

    ``cost`` is what the features of one site cost, with h and h′ the rows of its tokens, ``principal`` at most, and k
    the rank (`lorascope models kernels` prints it); ``sees`` and ``blind_to`` are as for features, and tested.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    reference: ClassVar[str]
    cost: ClassVar[str]
    sees: ClassVar[frozenset[Change]]
    blind_to: ClassVar[frozenset[Change]]
    lengths: ClassVar[tuple[float, ...]]
    """ℓ of a radial kernel, one kernel for each; empty for a linear one."""
    is_rank_stable: ClassVar[bool]
    """Whether its features mean the same at a rank that no training adapter had."""

    def __call__(self, tokens: Tokens) -> NDArray[Any]:
        """φ [n, d] at one site."""
        ...


KERNELS: Family[type[Kernel]] = Family("kernel", "lorascope.predict.kernels", "KERNEL", "lorascope.kernels")


LARGEST_SHARE = 1e-5
"""Of the largest number of a dtype: Σ σ over any rank is one as well."""


@dataclass(frozen=True)
class Sites:
    """The sites of a structure in the order of its tokens, stack by stack."""

    names: tuple[str, ...]
    places: tuple[tuple[int, int], ...]

    def tokens(
        self, inputs: dict[str, NDArray[Any]], site: int, rows: Any = slice(None), dtype: Any = np.float64
    ) -> Tokens:
        """The tokens of a site, of all adapters or of some rows; σ no larger than the dtype can hold the sum of."""
        stack, place = self.places[site]
        left, S, right = (inputs[f"{part}{stack}"][rows, place] for part in ("left", "S", "right"))
        S = np.minimum(S, LARGEST_SHARE * np.finfo(dtype).max)
        return Tokens(*(np.asarray(part, dtype) for part in (left, S, right)))

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.names)))
