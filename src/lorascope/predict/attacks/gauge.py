"""Another gauge: (B M⁻¹, M A) is the same finetune.

M is drawn for every site with condition number 100, computed in float64 and stored in float32 as a file would be.
"""

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.attack import Attack, Factors
from lorascope.symmetry import act, random_gauge

CONDITION = 100.0


def change(B: NDArray[np.float64], A: NDArray[np.float64], rng: np.random.Generator) -> Factors:
    """(B M⁻¹, M A)."""
    turned = act(random_gauge(B.shape[1], condition=CONDITION, rng=rng), B, A)
    return turned[0].astype(np.float32), turned[1].astype(np.float32)


ATTACK = Attack(
    "gauge", f"(B M⁻¹, M A), cond(M) = {CONDITION:g}, stored in float32", keeps_update=True, changes={"gauge": change}
)
