"""O-Align: one representative per fibre, by orthogonal Procrustes alignment with a template.

The factors are balanced first, directions below the numerical rank are dropped, and the stack [U√S; V√S] is
turned by the polar factor of its product with the template's stack. Balancing removes all of GL(r) but O(r),
and the polar factor removes O(r): the result is invariant to GL(r).
Source: Learning on LoRAs (arXiv 2410.04207), O-Align, whose public code aligns unbalanced factors and so
is invariant to O(r) alone.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lorascope.symmetry.arrays import Array, default_rtol, namespace, transpose
from lorascope.symmetry.canonical import numerical_rank, thin_svd


class Aligned(NamedTuple):
    """B [*sites, out, R] and A [*sites, R, in] with B · A = ΔW, and ``smallest`` [*sites].

    ``smallest`` is the least singular value of the alignment over the directions that ΔW has; the form is
    defined where it is positive, and moves by about the rounding of the factors over it. NaN for
    ΔW = 0, whose form is 0.
    """

    B: Array
    A: Array
    smallest: Array


def random_template(
    out: int, in_: int, rank: int, *, seed: int
) -> tuple[Float[np.ndarray, "out rank"], Float[np.ndarray, "rank in_"]]:
    """A seeded template: independent normal entries of variance 1 / (out + in).

    Any factors may serve, the balanced ones of a training adapter too; a template from data needs no seed.
    """
    rng = np.random.default_rng(seed)
    spread = (out + in_) ** -0.5
    return spread * rng.standard_normal((out, rank)), spread * rng.standard_normal((rank, in_))


def align(
    B: Float[Array, "*sites out rank"],
    A: Float[Array, "*sites rank in"],
    template_B: Float[Array, "*templates out R"],
    template_A: Float[Array, "*templates R in"],
    scale: Any = 1.0,
    *,
    rtol: float | None = None,
) -> Aligned:
    """The factors of ΔW = scale · B · A that lie closest to the template.

    Args:
        B, A, scale: the update; its numerical rank may be anything up to the template's.
        template_B, template_A: [out, R] and [R, in], one for all sites or one for each.
        rtol: directions with σ ≤ rtol · σ₁ are dropped (that they were noise is the caller's claim);
            by default the rounding unit of the dtype times max(out, in).

    Raises:
        ValueError: where an update has more directions than the template: the form would lose some.

    >>> import numpy as np
    >>> B0, A0 = random_template(3, 2, 2, seed=0)
    >>> x = align(np.ones((3, 1)), np.ones((1, 2)), B0, A0)
    >>> y = align(-0.5 * np.ones((3, 1)), -2 * np.ones((1, 2)), B0, A0)
    >>> x.B.shape, bool(np.allclose(x.B, y.B)), bool(np.allclose(x.B @ x.A, 1.0))
    ((3, 2), True, True)
    """
    U, S, Vh = thin_svd(B, A, scale)
    xp = namespace(U, template_B)
    R = template_B.shape[-1]
    rank = numerical_rank(S, rtol=default_rtol(B, A) if rtol is None else rtol)
    if int(xp.max(rank)) > R:
        raise ValueError(f"an update has {int(xp.max(rank))} directions, the template only {R}; use a larger one")
    places = xp.arange(S.shape[-1])
    root = xp.where(places < rank[..., None], xp.sqrt(S), xp.zeros_like(S))
    left, right = U * root[..., None, :], root[..., :, None] * Vh
    # A dropped direction is a zero row of M: its part of the polar factor is arbitrary and meets zero columns
    # only.
    M = transpose(left) @ template_B + right @ transpose(template_A)
    P, singular, Wh = xp.linalg.svd(M, full_matrices=False)
    turn = P @ Wh
    last = xp.clip(rank[..., None] - 1, 0, singular.shape[-1] - 1)
    smallest = xp.take_along_axis(singular, last, axis=-1)[..., 0]
    smallest = xp.where(rank > 0, smallest, xp.full_like(smallest, float("nan")))
    return Aligned(left @ turn, transpose(turn) @ right, smallest)
