"""Canonical forms of an update: the thin SVD of ΔW, and the balanced factors.

    B = Q_B R_B,  Aᵀ = Q_A R_A,  s R_B R_Aᵀ = P S Wᵀ   ⟹   ΔW = U S Vᵀ,  U = Q_B P,  V = Q_A W

A thin SVD is constant on the fibres of ΔW only up to its stabiliser: the sign of each pair (u, v), and O(k)
on each cluster of k equal singular values; on σ = 0 the vectors are arbitrary. Nearly equal values (relative
gap g) rotate by up to the rounding of ΔW over g. Build features from functions that the stabiliser leaves
alone.
"""

from typing import Any, NamedTuple

from jaxtyping import Float, Int

from lorascope.symmetry.arrays import Array, eps, like, namespace, to_float64, transpose


class SVD(NamedTuple):
    """ΔW = U · diag(S) · Vh, with k = min(out, in, rank) and S descending."""

    U: Array
    S: Array
    Vh: Array


def thin_svd(B: Float[Array, "*sites out rank"], A: Float[Array, "*sites rank in"], scale: Any = 1.0) -> SVD:
    """The thin SVD of ΔW = scale · B · A, over any leading axes, without forming ΔW.

    U [*sites, out, k], S [*sites, k], Vh [*sites, k, in], k = min(out, in, rank). QR of both factors in their
    own dtype, SVD of the core in float64. Defined for zero, deficient and rank-1 updates: U and Vh always
    have orthonormal columns and rows, and S holds zeros where ΔW has no more directions. A negative scale
    goes into U.

    >>> import numpy as np
    >>> thin_svd(np.array([[3.0], [4.0]]), np.array([[1.0, 0.0]])).S
    array([5.])
    """
    xp = namespace(B, A)
    left, right = xp.linalg.qr(B), xp.linalg.qr(transpose(A))
    core = to_float64(left.R) @ transpose(to_float64(right.R))
    core = core * like(scale, core)[..., None, None]
    P, S, Wh = xp.linalg.svd(core, full_matrices=False)
    U = left.Q @ xp.astype(P, B.dtype, copy=False)
    Vh = xp.astype(Wh, A.dtype, copy=False) @ transpose(right.Q)
    return SVD(U, xp.astype(S, B.dtype, copy=False), Vh)


def numerical_rank(S: Float[Array, "*sites k"], *, rtol: float | None = None) -> Int[Array, "*sites"]:
    """How many singular values exceed ``rtol`` · σ₁; 0 for a zero update.

    ``rtol`` defaults to 64 rounding units of the dtype of S. Values that were stored in a narrower dtype than
    they are computed in need a larger one: pass eps(stored dtype) · max(out, in).

    >>> import numpy as np
    >>> int(numerical_rank(np.array([2.0, 1e-3, 1e-18])))
    2
    """
    xp = namespace(S)
    threshold = (64 * eps(S) if rtol is None else rtol) * S[..., :1]
    return xp.sum(xp.astype(threshold < S, xp.int64), axis=-1)


def balance(
    B: Float[Array, "*sites out rank"], A: Float[Array, "*sites rank in"], scale: Any = 1.0
) -> tuple[Array, Array]:
    """The balanced factors (U √S, √S Vh): their product is ΔW with scale 1, and BᵀB = AAᵀ = S.

    [*sites, out, k] and [*sites, k, in], k = min(out, in, rank). Constant on the fibres of ΔW up to O(k)
    acting as (B Q, Qᵀ A), where public O-Align stops at O(rank) of factors that were never balanced.

    >>> import numpy as np
    >>> B, A = balance(np.array([[8.0]]), np.array([[0.5]]))
    >>> abs(B), abs(A)
    (array([[2.]]), array([[2.]]))
    """
    U, S, Vh = thin_svd(B, A, scale)
    xp = namespace(S)
    root = xp.sqrt(S)
    return U * root[..., None, :], root[..., :, None] * Vh
