"""The groups that laws are tested with: the symmetry itself, and bigger ones under which a law must break.

GL(r)          (B M⁻¹, M A)       the symmetry of ΔW: every law holds
GL(r)×GL(r)    (B M⁻¹, N A)       independent on the two sides: what forms B · A must break
GL(out)        (P B, A)           on the other side of B: what has weights of its own must break
padding        ([B 0], [A; 0])    zero columns and rows appended
permutation    (B Pᵀ, P A)        a part of GL(r), exact in floating point
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorascope.symmetry import act, pad_rank, random_gauge
from lorascope.symmetry.arrays import Array, like

Group = Literal["GL(r)", "GL(r)×GL(r)", "GL(out)"]

Move = Callable[[Array, Array], tuple[Array, Array]]
"""A group element acting on (B, A), whose leading axes are those of the pair it was drawn for, or none."""


def draw_gauge(
    group: Group, B: Array, A: Array, *, condition: float, rng: np.random.Generator
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """A random element of the group, one per leading index of B, as a function of (B, A).

    >>> rng = np.random.default_rng(0)
    >>> B, A = np.ones((3, 2)), np.ones((2, 4))
    >>> moved_B, moved_A = draw_gauge("GL(r)", B, A, condition=10.0, rng=rng)(B, A)
    >>> bool(np.allclose(moved_B @ moved_A, B @ A)), bool(np.allclose(moved_B, B))
    (True, False)
    """
    batch = tuple(B.shape[:-2])

    def element(size: int) -> NDArray[np.float64]:
        return random_gauge(size, condition=condition, batch=batch, rng=rng)

    if group == "GL(r)":
        M = element(B.shape[-1])
        return lambda B, A: act(like(M, B), B, A)
    if group == "GL(r)×GL(r)":
        M, N = element(B.shape[-1]), element(B.shape[-1])
        return lambda B, A: (act(like(M, B), B, A)[0], like(N, A) @ A)
    if group == "GL(out)":
        P = element(B.shape[-2])
        return lambda B, A: (like(P, B) @ B, A)
    raise ValueError(f"group must be one of 'GL(r)', 'GL(r)×GL(r)', 'GL(out)', found {group!r}")


def draw_padding(B: Array, rng: np.random.Generator) -> Move:
    """Zero columns and rows, one to four of them."""
    rank = int(B.shape[-1]) + int(rng.integers(1, 5))
    return lambda B, A: pad_rank(B, A, rank)


def draw_permutation(B: Array, rng: np.random.Generator) -> Move:
    """The rank axis in another order, the same at all sites."""
    order = rng.permutation(B.shape[-1])
    order = (np.roll(order, 1) if (order == np.arange(len(order))).all() else order).tolist()
    return lambda B, A: (B[..., :, order], A[..., order, :])
