"""Inner products, norms, distances and angles of updates, in cores of the size of the ranks.

No out × in matrix is formed. Ranks of the two sides may differ; leading axes (sites, adapters) broadcast.
"""

from typing import Any

from jaxtyping import Float

from lorascope.symmetry.arrays import Array, default_rtol, like, namespace, scaled, to_float64, transpose
from lorascope.symmetry.canonical import numerical_rank, thin_svd


def inner(
    B1: Float[Array, "*s out rank1"],
    A1: Float[Array, "*s rank1 in"],
    B2: Float[Array, "*t out rank2"],
    A2: Float[Array, "*t rank2 in"],
    scale1: Any = 1.0,
    scale2: Any = 1.0,
) -> Array:
    """⟨ΔW₁, ΔW₂⟩ = s₁ s₂ tr((B₁ᵀB₂)(A₂A₁ᵀ)), [*sites], in float64.

    Differentiable everywhere, at zero and at deficient factors too. Not for distances: see ``distance``.

    >>> import numpy as np
    >>> one = np.ones((2, 1)), np.ones((1, 3))
    >>> float(inner(*one, *one))
    6.0
    """
    xp = namespace(B1, A1, B2, A2)
    left = to_float64(transpose(B1) @ B2)
    right = to_float64(A1 @ transpose(A2))
    product = xp.sum(left * right, axis=(-2, -1))
    return product * like(scale1, product) * like(scale2, product)


def _core(B: Array, A: Array) -> Array:
    """R_B R_Aᵀ, the core of ΔW = Q_B (R_B R_Aᵀ) Q_Aᵀ, in float64."""
    xp = namespace(B, A)
    R_B, R_A = xp.linalg.qr(B).R, xp.linalg.qr(transpose(A)).R
    return to_float64(R_B) @ transpose(to_float64(R_A))


def norm(B: Float[Array, "*sites out rank"], A: Float[Array, "*sites rank in"], scale: Any = 1.0) -> Array:
    """‖ΔW‖_F = |s| ‖R_B R_Aᵀ‖_F, [*sites], in float64; relative error eps · cond of the factors.

    >>> import numpy as np
    >>> round(float(norm(np.ones((2, 1)), np.ones((1, 2)), scale=-3.0)), 12)
    6.0
    """
    core = _core(B, A)
    xp = namespace(core)
    largest = xp.max(xp.abs(core), axis=(-2, -1))  # squares of tiny or huge entries would leave the range
    unit = xp.where(largest > 0, largest, xp.ones_like(largest))
    relative = core / unit[..., None, None]
    return xp.sqrt(xp.sum(relative * relative, axis=(-2, -1))) * largest * xp.abs(like(scale, core))


def distance(
    B1: Float[Array, "*s out rank1"],
    A1: Float[Array, "*s rank1 in"],
    B2: Float[Array, "*s out rank2"],
    A2: Float[Array, "*s rank2 in"],
    scale1: Any = 1.0,
    scale2: Any = 1.0,
) -> Array:
    """‖ΔW₁ − ΔW₂‖_F, [*sites], from QR of the stacked [B₁, B₂] and [s₁A₁; −s₂A₂].

    Expanding n₁² + n₂² − 2⟨·,·⟩ would lose half of the digits of a small distance; this loses none:
    the error is eps · (‖s₁B₁‖‖A₁‖ + ‖s₂B₂‖‖A₂‖).

    >>> import numpy as np
    >>> B, A = np.ones((2, 1)), np.ones((1, 2))
    >>> round(float(distance(B, A, 2 * B, A)), 12), bool(distance(B, A, 2 * B, 0.5 * A) < 1e-14)
    (2.0, True)
    """
    xp = namespace(B1, A1, B2, A2)
    B = xp.concat([B1, B2], axis=-1)
    A = xp.concat([scaled(A1, scale1), -scaled(A2, scale2)], axis=-2)
    return norm(B, A)


def principal_angles(
    B1: Float[Array, "*s out rank1"],
    A1: Float[Array, "*s rank1 in"],
    B2: Float[Array, "*s out rank2"],
    A2: Float[Array, "*s rank2 in"],
    *,
    side: str = "out",
    rtol: float | None = None,
) -> Array:
    """The principal angles between the column spaces (``side="out"``) or row spaces (``"in"``) of two
    updates.

    Radians in [0, π/2], ascending, [*sites, min(out, in, rank1, rank2)], float64. The spaces are those of ΔW at
    numerical rank (``rtol`` relative to σ₁, by default eps · max(out, in)); where a space has fewer dimensions than
    there are places, the last angles are NaN: they do not exist. Small angles come from sines and large ones from
    cosines (Björck & Golub 1973), so both are exact to about eps · σ₁/σ_k of the update.

    >>> import numpy as np
    >>> x, y = np.array([[1.0], [0.0]]), np.array([[1.0], [1.0]])
    >>> round(float(principal_angles(x, x.T, y, y.T)[0]) * 4 / np.pi, 12)
    1.0
    """
    return angles_between(*_basis(B1, A1, side, rtol), *_basis(B2, A2, side, rtol))


def angles_between(Q1: Float[Array, "*s n k1"], rank1: Any, Q2: Float[Array, "*s n k2"], rank2: Any) -> Array:
    """The principal angles of two spaces given by orthonormal columns, those beyond ``rank1`` and ``rank2`` zero.

    Radians in [0, π/2], ascending, [*s, min(k1, k2)], NaN beyond the smaller rank.

    >>> import numpy as np
    >>> angles_between(np.eye(3, 2), np.asarray(2), np.eye(3, 1), np.asarray(1)).round(12)
    array([0.])
    """
    xp = namespace(Q1, Q2)
    count = min(Q1.shape[-1], Q2.shape[-1])
    one, two = _widened(Q1, Q2.shape[-1]), _widened(Q2, Q1.shape[-1])
    swap = (rank1 > rank2)[..., None, None]
    small, large = xp.where(swap, two, one), xp.where(swap, one, two)
    overlap = transpose(large) @ small
    cosines = xp.clip(xp.linalg.svd(overlap, full_matrices=False).S, 0.0, 1.0)[..., :count]
    outside = xp.linalg.svd(small - large @ overlap, full_matrices=False).S
    # Of the sines, which come in descending order, those of the columns that were cut away are zeros at the
    # end.
    dimension = xp.minimum(rank1, rank2)[..., None]
    place = xp.arange(count)
    sines = xp.take_along_axis(outside, xp.clip(dimension - 1 - place, 0, outside.shape[-1] - 1), axis=-1)
    angles = xp.where(cosines > 0.7, xp.asin(xp.clip(sines, 0.0, 1.0)), xp.acos(cosines))
    return xp.where(place < dimension, angles, xp.full_like(angles, float("nan")))


def _basis(B: Array, A: Array, side: str, rtol: float | None) -> tuple[Array, Array]:
    """An orthonormal basis of one side of ΔW, columns beyond the numerical rank zero, and that rank."""
    xp = namespace(B, A)
    svd = thin_svd(B, A)
    rank = numerical_rank(svd.S, rtol=default_rtol(B, A) if rtol is None else rtol)
    basis = to_float64(svd.U if side == "out" else transpose(svd.Vh))
    kept = xp.arange(basis.shape[-1]) < rank[..., None]
    return basis * xp.astype(kept, basis.dtype)[..., None, :], rank


def _widened(basis: Array, count: int) -> Array:
    xp = namespace(basis)
    missing = max(0, count - basis.shape[-1])
    return xp.concat([basis, xp.zeros_like(basis[..., :1]) + xp.zeros((missing,), dtype=basis.dtype)], axis=-1)
