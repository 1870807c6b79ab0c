"""The thin SVD of ΔW by Gram matrices, seen through projections: for large layers, where QR would be most of the work.

    G = BᵀB,  K = AAᵀ,  G = R_B R_Bᵀ and K = R_A R_Aᵀ (R = diag · L, Cholesky),  R_Bᵀ R_A = X S Yᵀ
    ⟹   U = B R_B⁻ᵀ X,  V = Aᵀ R_A⁻ᵀ Y,  so that P U = (P B) R_B⁻ᵀ X and Q V = (Q Aᵀ) R_A⁻ᵀ Y

Only the products with B and A are as long as the layer; all else is r × r in float64. The Gram matrix squares the
condition number: what it gives is off by c · eps · κ², κ that of the factor with columns of unit length (scaling the
columns costs nothing). So a bound of κ is known before the SVD, and who calls decides what to compute again.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray


class Root(NamedTuple):
    """diag(lengths) L is a root of a Gram matrix, and ``inverse`` that of L.

    ``condition`` [*sites]: an upper bound of κ of the columns at unit length, columns of zeros left aside; infinite
    where the others are dependent, and then nothing else of the site means anything.
    """

    L: Float[np.ndarray, "*sites rank rank"]
    inverse: Float[np.ndarray, "*sites rank rank"]
    lengths: Float[np.ndarray, "*sites rank"]
    condition: Float[np.ndarray, "*sites"]

    @classmethod
    def of(cls, G: Float[np.ndarray, "*sites rank rank"]) -> "Root":
        """Of Gram matrices of any dtype: κ = ‖L‖₂ ‖L⁻¹‖₂ ≤ √‖L Lᵀ‖_F ‖L⁻¹‖_F.

        A column that is zero harms nothing; a matrix without a root gets the identity and ∞.
        """
        identity = np.eye(G.shape[-1])
        is_finite: NDArray[np.bool_] = np.asarray(np.isfinite(G).all(axis=(-2, -1)))
        whole = np.where(is_finite[..., None, None], G.astype(np.float64), identity)
        lengths = np.sqrt(np.maximum(np.diagonal(whole, axis1=-2, axis2=-1), 0.0))
        safe = np.where(lengths > 0, lengths, 1.0)
        unit = whole / safe[..., :, None] / safe[..., None, :] + identity * (lengths == 0)[..., None]
        roots, is_root = _cholesky(unit)
        is_root = is_root & is_finite
        roots = np.where(is_root[..., None, None], roots, identity)
        inverse = np.linalg.inv(roots)
        bound = np.sqrt(np.linalg.norm(unit, axis=(-2, -1))) * np.linalg.norm(inverse, axis=(-2, -1))
        return cls(roots, inverse, lengths, np.where(is_root, bound, np.inf))

    def seen(self, products: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """P Q turn for P B = P Q Rᵀ, Q with orthonormal columns; zeros of columns of zeros."""
        unit = products.astype(np.float64) / np.where(self.lengths > 0, self.lengths, 1.0)[..., None, :]
        return unit @ (np.swapaxes(self.inverse, -1, -2) @ turn)


class Projected(NamedTuple):
    """``left`` [*sites, h, r] = P U, ``S`` [*sites, r], ``right`` [*sites, h′, r] = Q V in float64.

    ``condition`` [*sites]: of the worse root.
    """

    left: Float[np.ndarray, "*sites h rank"]
    S: Float[np.ndarray, "*sites rank"]
    right: Float[np.ndarray, "*sites h2 rank"]
    condition: Float[np.ndarray, "*sites"]


def projected_svd(
    PB: Float[np.ndarray, "*sites h rank"], QA: Float[np.ndarray, "*sites h2 rank"], left: Root, right: Root
) -> Projected:
    """P U, S and Q V of ΔW = B A.

    Args:
        PB, QA: P B and Q Aᵀ.
        left, right: roots of BᵀB and of AAᵀ.

    >>> B, A = np.array([[3.0], [4.0]]), np.array([[1.0, 0.0]])
    >>> found = projected_svd(B, A.T, Root.of(B.T @ B), Root.of(A @ A.T))
    >>> found.S, np.abs(found.left[:, 0]), float(found.condition)
    (array([5.]), array([0.6, 0.8]), 1.0)
    """
    core = np.swapaxes(left.L * left.lengths[..., None], -1, -2) @ (right.L * right.lengths[..., None])
    X, S, Y = _svd(core)
    return Projected(left.seen(PB, X), S, right.seen(QA, Y), np.maximum(left.condition, right.condition))


NEAR = 1e-4
"""The share of σ₁ down to which singular vectors come from the eigenvectors of C Cᵀ, in two thirds of the time of an
SVD: they are off by eps/NEAR² = 2e-8, less than float32 rounds a product to."""


def _svd(C: Float[np.ndarray, "*sites rank rank"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, S and Y of C = X S Yᵀ, by eigenvectors where all σ are near each other."""
    across = np.swapaxes(C, -1, -2)
    left = np.array(np.linalg.eigh(C @ across).eigenvectors[..., ::-1])
    right = across @ left
    S = np.linalg.norm(right, axis=-2)
    right /= np.where(S > 0, S, 1.0)[..., None, :]
    is_near = S.min(axis=-1, initial=np.inf) > NEAR * S.max(axis=-1, initial=0.0)
    if not is_near.all():
        left[~is_near], S[~is_near], rest = np.linalg.svd(C[~is_near])
        right[~is_near] = np.swapaxes(rest, -1, -2)
    return left, S, right


def _cholesky(
    G: Float[np.ndarray, "*sites rank rank"],
) -> tuple[Float[np.ndarray, "*sites rank rank"], NDArray[np.bool_]]:
    """Cholesky factors, and whether there was one; one by one where one of them has none."""
    try:
        return np.linalg.cholesky(G), np.ones(G.shape[:-2], bool)
    except np.linalg.LinAlgError:
        pass
    flat = G.reshape(-1, *G.shape[-2:])
    roots, is_root = np.zeros_like(flat), np.zeros(len(flat), bool)
    for i, one in enumerate(flat):
        try:
            roots[i], is_root[i] = np.linalg.cholesky(one), True
        except np.linalg.LinAlgError:
            continue
    return roots.reshape(G.shape), is_root.reshape(G.shape[:-2])
