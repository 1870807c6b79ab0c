"""A larger rank that says nothing: zeros up to twice the rank, and the ranks in a random order.

Stored in float32: of files in float32 or less no bit of ΔW's summands changes, only their order.
"""

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.attack import Attack, Factors
from lorascope.symmetry import pad_rank


def change(B: NDArray[np.float64], A: NDArray[np.float64], rng: np.random.Generator) -> Factors:
    """([B, 0] P, Pᵀ [A; 0]) with P a random permutation."""
    wide, tall = pad_rank(B, A, 2 * B.shape[1])
    order = rng.permutation(2 * B.shape[1])
    return wide[:, order].astype(np.float32), tall[order].astype(np.float32)


ATTACK = Attack(
    "padding",
    "([B, 0] P, Pᵀ [A; 0]) with twice the rank, P a permutation",
    keeps_update=True,
    changes={"padding": change},
)
