"""Whether updates share a factor up to its gauge, and how far from it they are: what federated methods rest on.

    the A_i have one row space V of dimension r   ⟺   ΔW_i = ΔW_i V Vᵀ for all i

V is the r leading right singular vectors of [ΔW_1; …; ΔW_n], r the largest rank of an A_i. What an update has outside
of V, ‖ΔW_i − ΔW_i V Vᵀ‖ / ‖ΔW_i‖, is measured as it stands, in the cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import LorascopeError
from lorascope.merge.joint import columns_of, rows_of
from lorascope.symmetry.common_sites import Pair


def shared_rows(pairs: Sequence[Pair], tolerance: float, site: str) -> NDArray[Any]:
    """V [in, r], which the rows of every A_i span.

    Args:
        pairs: n updates.
        tolerance: how much of an update may lie outside of V, relative to its norm.
        site: for messages.

    Raises:
        LorascopeError: where more lies outside, with how much.

    >>> A = np.array([[1.0, 2.0, 0.0]])
    >>> pairs = [Pair(np.ones((2, 1)), A), Pair(np.array([[3.0], [0.0]]), -2 * A)]
    >>> shared_rows(pairs, 1e-6, "q").shape
    (3, 1)
    """
    V = rows_of(pairs).basis[:, : max(np.linalg.matrix_rank(pair.A) if pair.A.size else 0 for pair in pairs)]
    _check([(pair.B @ _triangle(pair.A - (pair.A @ V) @ V.T), pair) for pair in pairs], tolerance, site, "A")
    return V


def shared_columns(pairs: Sequence[Pair], tolerance: float, site: str) -> NDArray[Any]:
    """U [out, r], which the columns of every B_i span; otherwise as ``shared_rows``."""
    U = columns_of(pairs).basis[:, : max(np.linalg.matrix_rank(pair.B) if pair.B.size else 0 for pair in pairs)]
    outside = [pair.A.T @ _triangle((pair.B - U @ (U.T @ pair.B)).T) for pair in pairs]
    _check(list(zip(outside, pairs, strict=True)), tolerance, site, "B")
    return U


def _triangle(rows: NDArray[Any]) -> NDArray[Any]:
    """Rᵀ of the QR of the transpose: as many columns as rows, and B Rᵀ has the norm of B times the rows."""
    return np.linalg.qr(rows.T).R.T


def _check(outside: list[tuple[NDArray[Any], Pair]], tolerance: float, site: str, factor: str) -> None:
    shares: list[float] = []
    for rest, pair in outside:
        whole = float(np.linalg.norm(pair.B @ _triangle(pair.A)))
        shares.append(float(np.linalg.norm(rest)) / whole if whole > 0 else 0.0)
    worst = int(np.argmax(shares))
    if shares[worst] > tolerance:
        raise LorascopeError(
            f"the adapters do not share {factor}, not even up to its gauge",
            key=site,
            expected=f"at most {tolerance:g} of each ΔW outside of a space of the adapters' rank",
            found=f"{shares[worst]:.3g} of that of adapter {worst + 1}",
            hint="`average` needs no shared factor; --option tolerance=… allows more, and leaves it out",
        )
