"""FedEx-LoRA: averaged factors, and what they leave out of the mean of the products added back. It is the mean.

B̄ = Σ w_i B_i    Ā = Σ w_i A_i    R = Σ w_i B_i A_i − B̄ Ā    result  B̄ Ā + R
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.checks import normalised
from lorascope.merge.method import Base, Parts, Product, concatenated
from lorascope.symmetry.canonical import thin_svd


@dataclass(frozen=True)
class Fedex(Base):
    """The same update as ``average``, which needs no averaged factors on the way: here to show that it is so.

    Published, B̄ Ā is sent as the adapter and R is added to the base; in one file both are one product. B̄ Ā and R change
    with the gauge, their sum does not. Lower ranks are padded with zeros. ``residual`` is what averaging factors loses.
    """

    name: ClassVar[str] = "fedex"
    formula: ClassVar[str] = "B̄ Ā + (Σ w_i B_i A_i − B̄ Ā), Σ w_i = 1"
    reference: ClassVar[str] = "FedEx-LoRA, Singhal et al. (arXiv 2410.09432)"

    def bias_weights(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weights over their sum."""
        return normalised(weights, self.name)

    def __call__(self, parts: Parts) -> Product:
        """Of rank at most the sum of the ranks: what B̄ Ā and R have beyond it cancels, and is taken out."""
        mean, rest = factor_average(parts), residual(parts)
        B, A = np.concatenate([mean.B, rest.B], axis=1), np.concatenate([mean.A, rest.A])
        if B.shape[1] == 0:
            return Product(B, A)
        rounding = float(np.finfo(B.dtype).eps) * max(parts.shape) * float(np.linalg.norm(B) * np.linalg.norm(A))
        svd = thin_svd(B, A)
        kept = svd.S > rounding
        return Product(svd.U[:, kept] * svd.S[kept], svd.Vh[kept])


def factor_average(parts: Parts) -> Product:
    """B̄ and Ā, the scale in B: what plain federated averaging takes for the mean."""
    weights = normalised(parts.weights, Fedex.name)
    rank = max(pair.B.shape[1] for pair in parts.pairs)
    B, A = np.zeros((parts.shape[0], rank)), np.zeros((rank, parts.shape[1]))
    for weight, pair in zip(weights, parts.pairs, strict=True):
        B[:, : pair.B.shape[1]] += weight * pair.B
        A[: pair.B.shape[1]] += weight * pair.A
    return Product(B, A)


def residual(parts: Parts) -> Product:
    """R = Σ w_i B_i A_i − B̄ Ā."""
    mean = factor_average(parts)
    exact = concatenated(parts.pairs, normalised(parts.weights, Fedex.name))
    return Product(np.concatenate([exact.B, -mean.B], axis=1), np.concatenate([exact.A, mean.A]))


METHOD = Fedex
