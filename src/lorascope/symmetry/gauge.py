"""The group action. One left action everywhere:

    act(M, (B, A)) = (B M⁻¹, M A)          act(N, act(M, x)) = act(N M, x)

for M in GL(rank), one per site. ΔW = scale · B · A does not change.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from lorascope.symmetry.arrays import Array, array_api_compat, namespace, transpose


def act(
    M: Float[Array, "*sites rank rank"],
    B: Float[Array, "*sites out rank"],
    A: Float[Array, "*sites rank in"],
) -> tuple[Float[Array, "*sites out rank"], Float[Array, "*sites rank in"]]:
    """(B M⁻¹, M A), by a solve and not by an inverse.

    The product keeps its value up to eps · cond(M) · ‖B‖‖A‖.

    >>> import numpy as np
    >>> M, B, A = np.array([[2.0]]), np.array([[6.0]]), np.array([[1.0]])
    >>> [factor.item() for factor in act(M, B, A)]
    [3.0, 2.0]
    """
    xp = namespace(M, B, A)
    return transpose(xp.linalg.solve(transpose(M), transpose(B))), M @ A


def random_gauge(
    rank: int, *, condition: float = 10.0, batch: tuple[int, ...] = (), rng: np.random.Generator
) -> Float[np.ndarray, "*batch rank rank"]:
    """Random elements of GL(rank) of a given condition number, as a float64 array [*batch, rank, rank].

    M = P diag(s) Q with P, Q uniform orthogonal and s spaced evenly in log from √condition to 1/√condition;
    at rank 1, a sign times a scale drawn from that range.

    >>> import numpy as np
    >>> M = random_gauge(4, condition=100.0, rng=np.random.default_rng(0))
    >>> round(float(np.linalg.cond(M)), 6)
    100.0
    """
    half = 0.5 * np.log(condition)
    if rank == 1:
        signs = rng.choice([-1.0, 1.0], size=(*batch, 1, 1))
        return signs * np.exp(rng.uniform(-half, half, size=(*batch, 1, 1)))
    left = np.linalg.qr(rng.standard_normal((*batch, rank, rank)))[0]
    right = np.linalg.qr(rng.standard_normal((*batch, rank, rank)))[0]
    spread = np.exp(half * (1 - 2 * np.arange(rank) / (rank - 1)))
    return (left * spread) @ right


def pad_rank(B: Float[Array, "*sites out rank"], A: Float[Array, "*sites rank in"], rank: int) -> tuple[Any, Any]:
    """The same update with zero columns of B and zero rows of A appended, up to ``rank``.

    Raises:
        ValueError: where the update has more than ``rank`` already.
    """
    xp = namespace(B, A)
    missing = rank - B.shape[-1]
    if missing < 0:
        raise ValueError(f"cannot pad rank {B.shape[-1]} to the smaller {rank}")
    zero_B = xp.zeros((*B.shape[:-1], missing), dtype=B.dtype, device=array_api_compat.device(B))
    zero_A = xp.zeros((*A.shape[:-2], missing, A.shape[-1]), dtype=A.dtype, device=array_api_compat.device(A))
    return xp.concat([B, zero_B], axis=-1), xp.concat([A, zero_A], axis=-2)
