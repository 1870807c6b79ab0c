"""What the kernels of spectra share: the logarithms of norm and leading singular values, with a floor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.features.invariants.log_norm import FLOOR, log_norm
from lorascope.features.invariants.log_spectrum import log_spectrum


def norm_and_spectrum(S: NDArray[Any], count: int, delta: float = 0.02) -> NDArray[Any]:
    """log ‖ΔW‖ and ½ log(σ_i² + δ² ‖ΔW‖² + ε²) for the ``count`` largest σ, [n, 1 + count].

    >>> norm_and_spectrum(np.array([[1.0, 0.0]]), 1).round(3)
    array([[0., 0.]])
    """
    # relative to σ₁, whose square float32 may not hold
    unit = np.maximum(S.max(axis=-1, keepdims=True, initial=0.0), FLOOR)
    relative, floor = S / unit, FLOOR / unit
    return np.log(unit) + np.concatenate(
        [log_norm(relative, floor), log_spectrum(relative, count, delta, floor)], axis=1
    )
