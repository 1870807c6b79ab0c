"""Factors rounded to float16, in the gauge of the file: 11 bits, and nothing below 6e-8.

An entry beyond 65,504 has no float16: such an adapter cannot be stored so, and the error says it.
"""

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import PredictorError
from lorascope.predict.attack import Attack, Factors


def change(B: NDArray[np.float64], A: NDArray[np.float64], rng: np.random.Generator) -> Factors:
    """Both factors to the nearest float16."""
    limit = float(np.finfo(np.float16).max)
    largest = max(float(np.abs(X).max(initial=0.0)) for X in (B, A))
    if largest > limit:
        raise PredictorError("the factors do not fit into float16", expected=f"at most {limit:g}", found=largest)
    return B.astype(np.float16), A.astype(np.float16)


ATTACK = Attack("fp16", "X rounded to float16 for X = B and A", keeps_update=False, changes={"fp16": change})
