"""Factors rounded to eight bits, one step for each tensor, in the gauge of the file.

    X' = d · round(X / d)        d = max |X| / 127

The error of an entry is at most d / 2. Stored as the numbers that such a file means, in float32.
"""

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.attack import Attack, Factors

LEVELS = 127


def rounded(X: NDArray[np.float64]) -> NDArray[np.float32]:
    """X on the grid of its largest entry."""
    step = float(np.abs(X).max(initial=0.0)) / LEVELS
    return (step * np.round(X / step) if step > 0 else X).astype(np.float32)


def change(B: NDArray[np.float64], A: NDArray[np.float64], rng: np.random.Generator) -> Factors:
    """Both factors, each on its own grid."""
    return rounded(B), rounded(A)


ATTACK = Attack(
    "int8", "d · round(X / d), d = max |X| / 127, for X = B and A", keeps_update=False, changes={"int8": change}
)
