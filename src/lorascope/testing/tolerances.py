"""How far rounding may move a result, from the dtype and the conditions: c · eps · κ(B, A) · κ(M).

κ(B, A) = ‖B‖‖A‖ / ‖B A‖ says how much larger the factors are than their product. It is at most √rank ·
cond(B) where B has full column rank (and the same with A), and unlike cond(B) it is finite for padded and
deficient factors.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from lorascope.symmetry import norm
from lorascope.symmetry.arrays import Array, eps, namespace

CONSTANT = 100.0
"""c: covers the growth with out, in and rank of sums of some hundred terms."""


def product_condition(B: Float[Array, "*sites out rank"], A: Float[Array, "*sites rank in"]) -> float:
    """κ(B, A) = ‖B‖_F ‖A‖_F / ‖B A‖_F, the largest over the sites; 1 for sites whose B or A is zero.

    >>> round(product_condition(np.eye(4), np.eye(4)), 12)
    2.0
    >>> product_condition(np.zeros((4, 2)), np.ones((2, 4)))
    1.0
    """
    xp = namespace(B, A)
    sizes = xp.linalg.matrix_norm(B) * xp.linalg.matrix_norm(A)
    sizes, products = _numpy(sizes), _numpy(norm(B, A))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(sizes == 0, 1.0, sizes / products)
    return float(np.max(ratios, initial=1.0))


def tolerance(
    B: Float[Array, "*sites out rank"],
    A: Float[Array, "*sites rank in"],
    *,
    gauge_condition: float = 1.0,
    constant: float = CONSTANT,
) -> float:
    """c · eps · κ(B, A) · κ(M), relative to the size of the result.

    Args:
        B, A: the update, in the dtype in which it is computed with.
        gauge_condition: κ(M) of the gauge that acted on it.
        constant: c.

    >>> tolerance(np.eye(2, dtype="float32"), np.eye(2, dtype="float32"), constant=1.0) < 2e-7
    True
    """
    return constant * eps(B) * product_condition(B, A) * gauge_condition


def _numpy(array: Any) -> np.ndarray:
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array, dtype=np.float64)
