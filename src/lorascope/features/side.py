"""Where ΔW writes and what it reads: filtered projectors on its column and row space.

    U f(S) Uᵀ and V f(S) Vᵀ,      f(σ) = σ² / (σ² + δ² ‖ΔW‖_F² + ε²)

f is smooth with f(0) = 0, so the values do not depend on signs, on rotations inside a cluster of equal singular values,
or on the vectors that go with σ = 0; directions above δ of the norm count fully, those below fade out. The
hard projector (δ → 0) would jump where a singular value vanishes. ε = 1e-12 makes it smooth at ΔW = 0.
"""

from jaxtyping import Float

from lorascope.symmetry.arrays import Array, namespace, transpose

FLOOR = 1e-12
"""ε: far below any trained update, far above underflow of its square."""


def filter_values(S: Float[Array, "*sites k"], delta: float) -> Float[Array, "*sites k"]:
    """f(σ) for each singular value, in [0, 1)."""
    xp = namespace(S)
    energy = xp.sum(S * S, axis=-1, keepdims=True)
    return S * S / (S * S + delta * delta * energy + FLOOR * FLOOR)


def filtered_projector(
    B: Float[Array, "*sites out rank"], A: Float[Array, "*sites rank in"], delta: float = 0.05
) -> Float[Array, "*sites out out"]:
    """U f(S) Uᵀ of ΔW = B A by one r × r solve, differentiable everywhere; call it on (Aᵀ, Bᵀ) for V f(S) Vᵀ.

    With G = BᵀB, K = AAᵀ and τ² = δ² tr(K G) + ε²:   U f(S) Uᵀ = B (K G + τ² I)⁻¹ K Bᵀ.
    The Gram matrices square the condition of the factors, so keep eps · κ² well below δ², κ = ‖B‖‖A‖ / ‖BA‖; where
    BA vanishes though B and A do not, the value is rounding. ``side_sketch`` goes by QR and has neither limit.

    >>> import numpy as np
    >>> filtered_projector(np.array([[3.0], [0.0]]), np.array([[2.0]]), delta=0.0)
    array([[1., 0.],
           [0., 0.]])
    """
    xp = namespace(B, A)
    G, K = transpose(B) @ B, A @ transpose(A)
    KG = K @ G
    identity = xp.eye(KG.shape[-1], dtype=KG.dtype)
    energy = xp.sum(KG * identity, axis=(-2, -1))[..., None, None]
    return B @ xp.linalg.solve(KG + (delta * delta * energy + FLOOR * FLOOR) * identity, K @ transpose(B))


def side_sketch(
    basis: Float[Array, "*sites h k"], S: Float[Array, "*sites k"], delta: float
) -> Float[Array, "*sites components"]:
    """The upper triangle of X f(S) Xᵀ for X = P U or Q V: h(h+1)/2 numbers per site.

    Entries off the diagonal carry a factor √2, so that the Euclidean inner product of two sketches is the
    Frobenius inner product of the matrices.
    """
    matrix = (basis * filter_values(S, delta)[..., None, :]) @ transpose(basis)
    rows, columns, weights = _triangle(matrix)
    return matrix[..., rows, columns] * weights


def side_directions(
    basis: Float[Array, "*sites h k"], S: Float[Array, "*sites k"], delta: float
) -> Float[Array, "*sites k components"]:
    """What each singular direction adds to ``side_sketch``: f(σ_i) x_i x_iᵀ; they sum to it."""
    rows, columns, weights = _triangle(basis @ transpose(basis))
    X = transpose(basis)
    return filter_values(S, delta)[..., None] * X[..., rows] * X[..., columns] * weights


def _triangle(matrix: Array) -> tuple[Array, Array, Array]:
    """Rows and columns of the upper triangle, and 1 on the diagonal, √2 off it."""
    xp = namespace(matrix)
    h = matrix.shape[-1]
    rows, columns = xp.nonzero(xp.triu(xp.ones((h, h), dtype=matrix.dtype)))
    one, root = xp.asarray(1.0, dtype=matrix.dtype), xp.asarray(2**0.5, dtype=matrix.dtype)
    return rows, columns, xp.where(rows == columns, one, root)
