"""Iso-CTS: the leading directions of the sum, some of each update beside them, and a flat spectrum over all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.checks import check_finite, check_share
from lorascope.merge.method import Base, Parts, Product, concatenated
from lorascope.merge.spectra import leading_svd, orthonormal
from lorascope.symmetry.common_sites import Pair


@dataclass(frozen=True)
class IsoCts(Base):
    """As published, but within the k directions of the sum instead of min(out, in).

    Of k directions, t = round((k − ⌊common · k⌋) / n) come from each update, the other k − n t from the sum. U and V
    of all of them are made orthonormal, and the spectrum flat. What is below ``cutoff`` · σ₁ of the sum counts as
    rounding. By default each weight is 1.

    Args:
        common: the share of directions that come from the sum, in (0, 1].
        cutoff: see there, in (0, 1].
        factor: what the result is multiplied by.
    """

    common: float = 0.8
    cutoff: float = 1e-3
    factor: float = 1.0

    name: ClassVar[str] = "iso-cts"
    formula: ClassVar[str] = "σ̄ U Vᵀ of the leading SVD of Σ w_i ΔW_i and those of w_i (I − U Uᵀ) ΔW_i, orthonormalised"
    reference: ClassVar[str] = "isotropic merging, Marczak et al. (arXiv 2502.04959), within the rank"
    is_idempotent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("common", self.common)
        check_share("cutoff", self.cutoff)
        check_finite("factor", self.factor)

    def default_weights(self, count: int) -> NDArray[np.float64]:
        """1 each."""
        return np.ones(count)

    def __call__(self, parts: Parts) -> Product:
        """Of at most the rank of the sum."""
        parts = parts.counting
        whole = leading_svd(concatenated(parts.pairs, parts.weights), self.cutoff)
        rank, count = len(whole.S), len(parts.pairs)
        own = min(rank // count, round((rank - int(self.common * rank)) / count))
        common = rank - count * own
        U = whole.U[:, :common]
        lefts, rights, values = [U], [whole.Vh[:common].T], [whole.S[:common]]
        floor = self.cutoff * (whole.S[0] if rank else 0.0)
        for pair, weight in zip(parts.pairs, parts.weights, strict=True):
            rest = leading_svd(Pair(weight * (pair.B - U @ (U.T @ pair.B)), pair.A), self.cutoff)
            kept = min(own, int(np.count_nonzero(rest.S > floor)))
            lefts.append(rest.U[:, :kept])
            rights.append(rest.Vh[:kept].T)
            values.append(rest.S[:kept])
        left = orthonormal(np.concatenate(lefts, axis=1), self.cutoff)
        right = orthonormal(np.concatenate(rights, axis=1), self.cutoff)
        S = np.concatenate(values)
        return Product(left * (self.factor * S.mean() if len(S) else 0.0), right.T)


METHOD = IsoCts
