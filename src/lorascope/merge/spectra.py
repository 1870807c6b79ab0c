"""Flat spectra and near-orthonormal columns: what isotropic merging and task singular vectors are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.method import Product
from lorascope.symmetry.canonical import SVD, thin_svd
from lorascope.symmetry.common_sites import Pair


def leading_svd(product: Product | Pair, cutoff: float) -> SVD:
    """The thin SVD of a product, without singular values of at most ``cutoff`` · σ₁.

    >>> leading_svd(Product(np.diag([2.0, 1.0, 1e-9]), np.eye(3)), 1e-3).S
    array([2., 1.])
    """
    if product.B.shape[1] == 0:
        return SVD(np.zeros((product.B.shape[0], 0)), np.zeros(0), np.zeros((0, product.A.shape[1])))
    svd = thin_svd(product.B, product.A)
    kept = int(np.count_nonzero(svd.S > cutoff * svd.S[0]))
    return SVD(svd.U[:, :kept], svd.S[:kept], svd.Vh[:kept])


def flattened(product: Product | Pair, cutoff: float) -> Product:
    """U (σ̄ I) Vᵀ with σ̄ the mean of the singular values above ``cutoff`` · σ₁.

    >>> B, A = flattened(Product(np.diag([3.0, 1.0]), np.eye(2)), 1e-3)
    >>> B @ A
    array([[2., 0.],
           [0., 2.]])
    """
    U, S, Vh = leading_svd(product, cutoff)
    return Product(U * (S.mean() if len(S) else 0.0), Vh)


def orthonormal(columns: NDArray[Any], cutoff: float) -> NDArray[Any]:
    """The matrix nearest to the columns [side, k] whose columns are orthonormal: the polar factor P Qᵀ.

    Where the columns are dependent, to ``cutoff`` of the largest singular value, it is the partial isometry of those
    directions that there are: what would be added to it is arbitrary.

    >>> orthonormal(np.array([[2.0, 0.0], [0.0, 0.5]]), 1e-3)
    array([[1., 0.],
           [0., 1.]])
    """
    if columns.shape[1] == 0:
        return columns
    P, S, Qh = np.linalg.svd(columns, full_matrices=False)
    kept = S > cutoff * S[0]
    return P[:, kept] @ Qh[kept]
