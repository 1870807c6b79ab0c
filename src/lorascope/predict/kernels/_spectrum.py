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
    # relative to σ₁, whose square float32 may not hold
    unit = np.maximum(S.max(axis=-1, keepdims=True, initial=0.0), FLOOR)
    relative, floor = S / unit, (FLOOR / unit) ** 2
    energy = (relative**2).sum(axis=-1, keepdims=True)
    leading = np.zeros((len(S), count), S.dtype)
    kept = min(count, S.shape[1])
    leading[:, :kept] = relative[:, :kept]
    logs = 0.5 * np.log(leading**2 + delta**2 * energy + floor)
    return np.log(unit) + np.concatenate([0.5 * np.log(energy + floor), logs], axis=1)
