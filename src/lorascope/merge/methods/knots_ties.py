"""KnOTS with TIES: the updates in the coordinates of their common columns, merged there entry by entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorascope.merge.checks import check_finite, check_share
from lorascope.merge.election import elected_mean, trimmed_to
from lorascope.merge.joint import columns_of
from lorascope.merge.method import Base, Parts, Product


@dataclass(frozen=True)
class KnotsTies(Base):
    """TIES on S V_iᵀ = Uᵀ ΔW_i, as the authors' code has it (their text merges V_i), trimmed per site.

    Where singular values S are equal, their vectors and so the result are not unique.
    With the weighted sum in place of TIES the result is that of ``linear``. Weights act as in ``ties``.

    Args:
        density: the share of entries of each S V_iᵀ that is kept, the largest ones.
        factor: what the result is multiplied by.
    """

    density: float = 0.2
    factor: float = 1.0

    name: ClassVar[str] = "knots-ties"
    formula: ClassVar[str] = "U · ties(S V_1ᵀ, …, S V_nᵀ), [ΔW_1, …, ΔW_n] = U S [V_1ᵀ, …, V_nᵀ]"
    reference: ClassVar[str] = "KnOTS, Stoica et al. (arXiv 2410.19735)"
    is_idempotent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("density", self.density)
        check_finite("factor", self.factor)

    def __call__(self, parts: Parts) -> Product:
        """Of rank at most the sum of the ranks, exactly."""
        U = columns_of(parts.counting.pairs).basis
        own = (trimmed_to((U.T @ pair.B) @ pair.A, self.density) for pair in parts.pairs)
        return Product(U, self.factor * elected_mean(own, parts.weights))


METHOD = KnotsTies
