"""Gaussian noise on both factors, relative to each factor's size.

    B' = B + s · rms(B) · G        A' = A + s · rms(A) · G'        G, G' standard normal, for every entry

in the gauge of the file, with s = 1 % and 10 %; rms is over the entries of the factor at that site. To first order
the two parts add up in quadrature: where the columns of B and the rows of A are near orthogonal and of like length, ΔW
moves by about √2 · s. A factor of zeros stays zero. How far ΔW did move is measured and reported beside the scores.
"""

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.attack import Attack, Change, Factors


def noise(size: float) -> Change:
    """The change with s = ``size``."""

    def noisy(X: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
        rms = np.sqrt(np.mean(X * X)) if X.size else 0.0
        return (X + size * rms * rng.standard_normal(X.shape)).astype(np.float32)

    def change(B: NDArray[np.float64], A: NDArray[np.float64], rng: np.random.Generator) -> Factors:
        return noisy(B, rng), noisy(A, rng)

    return change


ATTACK = Attack(
    "noise",
    "X + s · rms(X) · G for X = B and A, G standard normal, in the gauge of the file",
    keeps_update=False,
    changes={"noise 1 %": noise(0.01), "noise 10 %": noise(0.1)},
)
