"""Hypothesis strategies for updates, easy and awkward ones.

An update is built from the spectrum that ΔW is to have and a gauge M:

    B = [U √S  0] M⁻¹      A = M [√S Vᵀ; 0]      cond(B) ≤ √cond(S) · cond(M) ≤ max_condition

with M = P diag(m) Q built here, apart from the code under test, so its rank may exceed min(out, in), and every
awkward kind is met in awkward gauges.
"""

from typing import Any, Literal, get_args

import numpy as np
from hypothesis import strategies as st
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, LowRank

Kind = Literal["plain", "zero B", "zero A", "deficient", "repeated", "nearly repeated"]
"""What is special: nothing; B = 0 (as training starts); A = 0; fewer directions than the rank (at least one);
singular values that are all equal; or equal but for 1e-9."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@st.composite
def factor_pairs(
    draw: Any,
    *,
    shape: tuple[int, int] | None = None,
    max_side: int = 24,
    ranks: tuple[int, int] = (1, 16),
    max_condition: float = 1e4,
    kinds: tuple[Kind, ...] = KINDS,
    dtype: DTypeLike = np.float64,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Strategy for NumPy pairs B [out, rank], A [rank, in].

    Args:
        shape: (out, in); by default anything up to ``max_side``.
        ranks: the smallest and the largest rank.
        max_condition: bound of cond(B) and cond(A) over the directions that ΔW has.
        kinds: from which to draw.
        dtype: float64 or float32.

    >>> from hypothesis import find
    >>> B, A = find(factor_pairs(shape=(5, 3), ranks=(2, 2)), lambda pair: True)
    >>> B.shape, A.shape
    ((5, 2), (2, 3))
    """
    out, in_ = shape or (draw(st.integers(1, max_side)), draw(st.integers(1, max_side)))
    rank = draw(st.integers(*ranks))
    kind = draw(st.sampled_from(kinds))
    levels = [level for level in (1.0, 1e1, 1e2, 1e3, 1e4) if level <= max_condition]
    spread = draw(st.sampled_from(levels))
    gauge_condition = draw(st.sampled_from([level for level in levels if level <= max_condition / spread**0.5]))
    size = 10.0 ** draw(st.integers(-3, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    directions = min(out, in_, rank)
    if kind == "deficient":
        directions = draw(st.integers(1, max(1, directions - 1)))
    if kind in ("repeated", "nearly repeated"):
        S = 1 + (1e-9 if kind == "nearly repeated" else 0.0) * rng.random(directions)
    else:
        S = np.logspace(0.0, -np.log10(spread), directions)
    root = np.sqrt(size * S)
    B, A = np.zeros((out, rank)), np.zeros((rank, in_))
    B[:, :directions] = np.linalg.qr(rng.standard_normal((out, directions)))[0] * root
    A[:directions] = (np.linalg.qr(rng.standard_normal((in_, directions)))[0] * root).T
    left, right = (np.linalg.qr(rng.standard_normal((rank, rank)))[0] for _ in range(2))
    middle = np.logspace(0.0, -np.log10(gauge_condition), rank)
    B, A = (B @ right.T / middle) @ left.T, left @ (middle[:, None] * right @ A)
    if kind == "zero B":
        B = np.zeros_like(B)
    if kind == "zero A":
        A = np.zeros_like(A)
    return B.astype(dtype), A.astype(dtype)


@st.composite
def updates(draw: Any, **options: Any) -> LowRank:
    """Strategy for ``LowRank`` updates of linear layers, scales of both signs and zero.

    Options as in ``factor_pairs``.

    >>> from hypothesis import find
    >>> find(updates(shape=(5, 3)), lambda update: update.scale < 0).scale
    -0.5
    """
    B, A = draw(factor_pairs(**options))
    return LowRank(B, A, scale=draw(st.sampled_from([1.0, 2.0, 0.25, -0.5, 0.0])))


@st.composite
def adapters(draw: Any, *, shapes: tuple[tuple[int, int], ...] | None = None, **options: Any) -> Adapter:
    """Strategy for adapters: one to four sites, of one or of several shapes, ranks mixed.

    Args:
        shapes: (out, in) of each site; by default drawn.
        options: of ``factor_pairs``.

    >>> from hypothesis import find
    >>> list(find(adapters(shapes=((5, 3), (4, 4))), lambda adapter: True))
    ['layers.0.linear', 'layers.1.linear']
    """
    if shapes is None:
        side = st.integers(1, options.get("max_side", 24))
        pool = draw(st.lists(st.tuples(side, side), min_size=1, max_size=2))
        shapes = tuple(draw(st.lists(st.sampled_from(pool), min_size=1, max_size=4)))
    return Adapter(
        {f"layers.{index}.linear": draw(updates(shape=shape, **options)) for index, shape in enumerate(shapes)}
    )
