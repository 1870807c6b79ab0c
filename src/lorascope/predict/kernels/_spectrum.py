"""What the kernels of spectra share: the logarithms of norm and leading singular values, with a floor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOOR = 1e-6
"""ε: an untrained site has log ε, an outlier that stays finite."""


def log_spectrum(S: NDArray[Any], count: int, delta: float = 0.02) -> NDArray[Any]:
    """log ‖ΔW‖ and ½ log(σ_i² + δ² ‖ΔW‖² + ε²) for the ``count`` largest σ, [n, 1 + count].

    >>> log_spectrum(np.array([[1.0, 0.0]]), 1).round(3)
    array([[0., 0.]])
    """
    dtype, S = S.dtype, np.asarray(S, np.float64)  # squares of large values leave the range of float32
    energy = (S * S).sum(axis=-1, keepdims=True)
    leading = np.zeros((len(S), count))
    kept = min(count, S.shape[1])
    leading[:, :kept] = S[:, :kept]
    logs = 0.5 * np.log(leading**2 + delta**2 * energy + FLOOR**2)
    return np.concatenate([0.5 * np.log(energy + FLOOR**2), logs], axis=1).astype(dtype)
