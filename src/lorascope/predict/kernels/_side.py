"""What the kernels of one side of ΔW share: X diag(w) Xᵀ at unit length."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def weighted_side(X: NDArray[Any], w: NDArray[Any]) -> NDArray[Any]:
    """X diag(w) Xᵀ divided by its norm, [n, h²]; zeros where that is zero.

    ``X`` [n, h, k], ``w`` [n, k] not negative. The norm comes from the k × k products of X.

    >>> weighted_side(np.array([[[3.0], [0.0]]]), np.array([[1.0]]))
    array([[1., 0., 0., 0.]])
    """
    root = X * np.sqrt(w)[:, None, :]
    across = np.ascontiguousarray(np.swapaxes(root, -1, -2))  # small products are fast where both sides lie in order
    square = ((across @ root) ** 2).sum(axis=(-2, -1))
    scale = np.where(square > 0, square, 1.0) ** -0.5
    return ((root * scale[:, None, None]) @ across).reshape(len(X), -1)


def directions_of_side(X: NDArray[Any], w: NDArray[Any]) -> NDArray[Any]:
    """What each direction adds to ``weighted_side``, [n, k, h²]: w_i x_i x_iᵀ divided by the norm of the whole."""
    parts = np.swapaxes(X, -1, -2) * np.sqrt(w)[..., None]
    square = ((parts @ np.swapaxes(parts, -1, -2)) ** 2).sum(axis=(-2, -1))
    norm = np.sqrt(np.where(square > 0, square, 1.0))[:, None, None, None]
    return (parts[..., :, None] * parts[..., None, :] / norm).reshape(*parts.shape[:2], -1)


def shares(S: NDArray[Any]) -> NDArray[Any]:
    """σ_i² / Σ σ², relative to σ₁ first so that nothing underflows; zeros where ΔW = 0."""
    largest = S.max(axis=-1, keepdims=True, initial=0.0)
    relative = (S / np.where(largest > 0, largest, 1.0)) ** 2
    total = relative.sum(axis=-1, keepdims=True)
    return relative / np.where(total > 0, total, 1.0)


def filtered(S: NDArray[Any], delta: float = 0.05) -> NDArray[Any]:
    """f(σ) = σ² / (σ² + δ² Σ σ²): 1 for directions that count, fading to 0 below δ of the norm.

    As ``features.side.filter_values``, but relative to σ₁ and without a floor: the same at every size of ΔW, however
    small or large.
    """
    p = shares(S)
    return p / (p + delta * delta)
