"""LoRA-LEGO as published: columns of B with rows of A grouped by k-means, one unit for each group. Not invariant.

units z_ij = [b_j; a_j] of (B_i, A_i)      the mean of a group: Σ z / count, scaled to the mean norm of its members
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.checks import check_least
from lorascope.merge.method import Base, Invariance, Parts, Product
from lorascope.merge.rank_units import Geometry, grouped, weighted_mean


@dataclass(frozen=True)
class LegoOriginal(Base):
    """For comparison: the same finetune in another gauge gives another result; ``lego`` does not.

    The scale is folded into B. Weights count in the mean of a group relative to each other; a negative one turns the
    column of B. The means start at the units that lie farthest apart and not at random ones.

    Args:
        clusters: how many groups, and so the rank of the result; 0 stands for the largest rank of the adapters.
        reweight: multiply by √(r / clusters), r the largest rank of the adapters (output reweighting).
    """

    clusters: int = 0
    reweight: bool = True

    name: ClassVar[str] = "lego-original"
    formula: ClassVar[str] = "Σ_c b_c a_cᵀ, c the k-means groups of the [b_j; a_j] of all factors"
    reference: ClassVar[str] = "LoRA-LEGO, Zhao et al. (arXiv 2409.16167)"
    invariance: ClassVar[Invariance] = "none"

    def __post_init__(self) -> None:
        check_least("clusters", self.clusters, 0)

    def __call__(self, parts: Parts) -> Product:
        """Of rank at most ``clusters``."""
        parts = parts.counting
        signs = np.where(parts.weights < 0, -1.0, 1.0)
        z = np.concatenate(
            [np.concatenate([sign * pair.B.T, pair.A], axis=1) for sign, pair in zip(signs, parts.pairs, strict=True)]
        )
        weights = np.repeat(np.abs(parts.weights), [pair.B.shape[1] for pair in parts.pairs])
        norms = np.linalg.norm(z, axis=1)
        largest = max(pair.B.shape[1] for pair in parts.pairs)
        geometry = Geometry[NDArray[Any]](
            norms,
            lambda of: weighted_mean(z[of], weights[of]),
            lambda mean: np.asarray(np.linalg.norm(z - mean, axis=1)),
        )
        units = [
            mean * (float(weighted_mean(norms[of], weights[of])) / (float(np.linalg.norm(mean)) or 1.0))
            for of, mean in grouped(geometry, self.clusters or max(1, largest))
        ]
        if not units:
            return Product(np.zeros((parts.shape[0], 0)), np.zeros((0, parts.shape[1])))
        factor = math.sqrt(largest / len(units)) if self.reweight else 1.0
        found = np.stack(units)
        return Product(factor * found[:, : parts.shape[0]].T, found[:, parts.shape[0] :])


METHOD = LegoOriginal
