"""What the kernels of one side of ΔW share: X diag(w) Xᵀ as a vector of unit length."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def weighted_side(X: NDArray[Any], w: NDArray[Any]) -> NDArray[Any]:
    """The upper triangle of X diag(w) Xᵀ, [n, h(h+1)/2], divided by its norm; zeros where that is zero.

    ``X`` [n, h, k], ``w`` [n, k] not negative. Entries off the diagonal carry √2, so that inner products are those of
    the matrices.

    >>> weighted_side(np.array([[[3.0], [0.0]]]), np.array([[1.0]]))
    array([[1., 0., 0.]])
    """
    root = X * np.sqrt(w)[:, None, :]
    matrix = root @ np.swapaxes(root, -1, -2)
    rows, columns = np.triu_indices(X.shape[1])
    flat = matrix[:, rows, columns] * np.where(rows == columns, 1.0, np.sqrt(2.0)).astype(X.dtype)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(norm > 0, norm, 1.0)


def shares(S: NDArray[Any]) -> NDArray[Any]:
    """σ_i² / Σ σ²; zeros where ΔW = 0."""
    energy = (S * S).sum(axis=-1, keepdims=True)
    return S * S / np.where(energy > 0, energy, 1.0)


def filtered(S: NDArray[Any], delta: float = 0.05) -> NDArray[Any]:
    """f(σ) = σ² / (σ² + δ² Σ σ²): 1 for directions that count, fading to 0 below δ of the norm."""
    p = shares(S)
    return p / (p + delta * delta)
