"""LoRA-LEGO made invariant: singular triples of all updates grouped by k-means, one rank-one unit for each group.

    units E_ij = sign(w_i) σ_ij u_ij v_ijᵀ of the SVD of ΔW_i, apart by ‖E − E'‖_F
    the mean of a group is the rank-one matrix nearest to Σ |w_i| E_ij, at the mean norm of its members

As a matrix, a unit has no sign to choose: (u, v) and (−u, −v) are the same E.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.checks import check_least
from lorascope.merge.method import Base, Parts, Product
from lorascope.merge.rank_units import Geometry, grouped, weighted_mean
from lorascope.merge.spectra import leading_svd
from lorascope.symmetry.canonical import thin_svd


class Unit(NamedTuple):
    """σ u vᵀ."""

    u: NDArray[Any]
    s: float
    v: NDArray[Any]


@dataclass(frozen=True)
class Lego(Base):
    """Published units are columns of B with rows of A, which the gauge mixes: ``lego-original``; singular triples stay.

    Where an update has equal singular values its units are not unique. Weights count in the mean of a group relative
    to each other; a negative one turns the unit.

    Args:
        clusters: how many groups, and so the rank of the result; 0 stands for the largest rank of the adapters.
        reweight: multiply by √(r / clusters), r the largest rank of the adapters (output reweighting).
    """

    clusters: int = 0
    reweight: bool = True

    name: ClassVar[str] = "lego"
    formula: ClassVar[str] = "Σ_c σ_c u_c v_cᵀ, c the k-means groups of the rank-one units σ u vᵀ of all ΔW_i"
    reference: ClassVar[str] = "LoRA-LEGO, Zhao et al. (arXiv 2409.16167), on singular triples"

    def __post_init__(self) -> None:
        check_least("clusters", self.clusters, 0)

    def __call__(self, parts: Parts) -> Product:
        """Of rank at most ``clusters``."""
        parts = parts.counting
        rounding = float(np.finfo(np.float64).eps) * max(parts.shape)
        svds = [leading_svd(pair, rounding) for pair in parts.pairs]
        signs = np.where(parts.weights < 0, -1.0, 1.0)
        U = np.concatenate([sign * svd.U for sign, svd in zip(signs, svds, strict=True)], axis=1)
        S, Vh = np.concatenate([svd.S for svd in svds]), np.concatenate([svd.Vh for svd in svds])
        weights = np.repeat(np.abs(parts.weights), [len(svd.S) for svd in svds])
        largest = max(len(svd.S) for svd in svds)

        def mean(of: NDArray[np.intp]) -> Unit:
            norm = float(weighted_mean(S[of], weights[of]))
            svd = thin_svd(U[:, of] * (weights[of] * S[of]), Vh[of])
            return Unit(svd.U[:, 0], norm if svd.S[0] > 0 else 0.0, svd.Vh[0])

        def distances(unit: Unit) -> NDArray[np.float64]:
            overlap = (unit.u @ U) * (Vh @ unit.v)
            return np.sqrt(np.maximum((S - unit.s) ** 2 + 2 * S * unit.s * (1 - overlap), 0.0))

        units = [unit for _, unit in grouped(Geometry(S, mean, distances), self.clusters or max(1, largest))]
        if not units:
            return Product(U, Vh)
        factor = math.sqrt(largest / len(units)) if self.reweight else 1.0
        return Product(
            np.stack([factor * unit.s * unit.u for unit in units], axis=1), np.stack([unit.v for unit in units])
        )


METHOD = Lego
