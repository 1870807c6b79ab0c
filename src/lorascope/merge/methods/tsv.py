"""TSV-Merge: singular vectors of all updates side by side, made orthonormal, with the singular values they had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.checks import check_finite, check_share
from lorascope.merge.method import Base, Parts, Product
from lorascope.merge.spectra import leading_svd, orthonormal


@dataclass(frozen=True)
class Tsv(Base):
    """Of each of n updates at most ⌊min(out, in) / n⌋ directions are taken, the leading ones, as published.

    Directions that updates share to ``cutoff`` are one direction of the orthonormal basis: nothing arbitrary is added.
    A weight multiplies the singular values. By default each is 1.

    Args:
        cutoff: the least singular value of the vectors side by side, relative to the largest, in (0, 1].
        factor: what the result is multiplied by.
    """

    cutoff: float = 1e-3
    factor: float = 1.0

    name: ClassVar[str] = "tsv"
    formula: ClassVar[str] = "polar([U_1, …, U_n]) diag(w_1 S_1, …, w_n S_n) polar([V_1, …, V_n])ᵀ"
    reference: ClassVar[str] = "Task Singular Vectors, Gargiulo et al. (arXiv 2412.00081)"
    is_idempotent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("cutoff", self.cutoff)
        check_finite("factor", self.factor)

    def default_weights(self, count: int) -> NDArray[np.float64]:
        """1 each."""
        return np.ones(count)

    def __call__(self, parts: Parts) -> Product:
        """Of rank at most the sum of the ranks."""
        parts = parts.counting
        most = max(1, min(parts.shape) // len(parts.pairs))
        rounding = float(np.finfo(np.float64).eps) * max(parts.shape)
        own = [leading_svd(pair, rounding) for pair in parts.pairs]
        S = np.concatenate([w * svd.S[:most] for w, svd in zip(parts.weights, own, strict=True)])
        left = orthonormal(np.concatenate([svd.U[:, :most] for svd in own], axis=1), self.cutoff)
        right = orthonormal(np.concatenate([svd.Vh[:most].T for svd in own], axis=1), self.cutoff)
        return Product(left * (self.factor * S), right.T)


METHOD = Tsv
