"""Core space: the updates as small cores between common bases of their columns and rows, merged there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import LorascopeError
from lorascope.merge.checks import check_finite, check_share
from lorascope.merge.election import elected_mean, trimmed_to
from lorascope.merge.joint import columns_of, rows_of
from lorascope.merge.method import Base, Parts, Product
from lorascope.merge.spectra import flattened

_INNER = ("linear", "ties", "iso-c")


@dataclass(frozen=True)
class CoreSpace(Base):
    """The bases are those of the ΔW_i; the published ones, of the factors B and A, change with the gauge.

    No information is lost: ΔW_i = U M_i Vᵀ. So with ``inner=linear`` the result is that of ``linear``, and with
    ``inner=iso-c`` that of ``iso-c``, the singular values of the cores being those of the updates. By default each
    weight is 1; with TIES weights act relative to each other, and where singular values of the bases are equal, their
    vectors and so the result are not unique.

    Args:
        inner: what merges the cores: linear, ties or iso-c.
        density: the share of entries of each core that TIES keeps.
        factor: what the result is multiplied by.
        cutoff: for iso-c, see there.
    """

    inner: str = "ties"
    density: float = 0.2
    factor: float = 1.0
    cutoff: float = 1e-3

    name: ClassVar[str] = "core-space"
    formula: ClassVar[str] = "U · inner(M_1, …, M_n) · Vᵀ, M_i = Uᵀ ΔW_i V, U of [ΔW_1, …], V of [ΔW_1; …]"
    reference: ClassVar[str] = "Core Space, Panariello et al. (arXiv 2509.17786), bases from ΔW"
    is_idempotent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("density", self.density)
        check_share("cutoff", self.cutoff)
        check_finite("factor", self.factor)
        if self.inner not in _INNER:
            raise LorascopeError(
                "cores are not merged so", key="inner", expected=f"one of {', '.join(_INNER)}", found=self.inner
            )

    def default_weights(self, count: int) -> NDArray[np.float64]:
        """1 each."""
        return np.ones(count)

    def __call__(self, parts: Parts) -> Product:
        """Of rank at most the sum of the ranks, exactly."""
        parts = parts.counting
        U, V = columns_of(parts.pairs).basis, rows_of(parts.pairs).basis
        cores = [(U.T @ pair.B) @ (pair.A @ V) for pair in parts.pairs]
        if self.inner == "ties":
            core = elected_mean((trimmed_to(one, self.density) for one in cores), parts.weights)
        else:
            core = np.sum([weight * one for weight, one in zip(parts.weights, cores, strict=True)], axis=0)
        if self.inner == "iso-c" and core.size:
            B, A = flattened(Product(core, np.eye(core.shape[1])), self.cutoff)
            return Product(self.factor * (U @ B), A @ V.T)
        return Product(self.factor * (U @ core), V.T)


METHOD = CoreSpace
