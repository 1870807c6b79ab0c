"""A matrix of full rank as factors of a low one, without holding it: a randomised range finder, its error measured.

    Y = M Ω,  Q = qr(Y),  Q ← qr(M (Mᵀ Q)) a few times,  C = Qᵀ M = P S Vᵀ   ⟹   M ≈ (Q P)_k S_k V_kᵀ

M is asked for in blocks of rows, once for each pass. The result is near the best of its rank; how near is not taken on
trust: the error is measured against M in a last pass. What is asked of the energy or of the error is of all of M, whose
part outside of Q is ‖M‖² − Σ S²; where Q is too small for it, a larger one is tried.

Source: Halko, Martinsson & Tropp (2011), arXiv 0909.4061, algorithms 4.4 and 5.1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter.rows import row_blocks
from lorascope.errors import AdapterError
from lorascope.merge.method import Rows
from lorascope.symmetry.canonical import SVD
from lorascope.symmetry.truncation import Cut, Truncated, truncated

OVERSAMPLED, POWERS = 16, 2


def low_rank(matrix: Rows, cut: Cut, largest: int, generator: np.random.Generator) -> Truncated:
    """The leading part of the matrix; ``norm`` and ``error`` are measured against it block by block.

    Args:
        matrix: [out, in].
        cut: how much of it is kept; where it asks nothing, at most ``largest`` singular values.
        largest: the rank that is looked for first where ``cut`` names none.
        generator: of Ω.

    Raises:
        AdapterError: where ‖matrix‖² is beyond the range of float64, or a number in it is not finite.

    >>> wanted = np.diag([3.0, 2.0, 1e-3, 0.0])
    >>> found = low_rank(Rows((4, 4), lambda rows: wanted[rows]), Cut(rank=2), 4, np.random.default_rng(0))
    >>> found.B.shape, round(found.error, 6)
    ((4, 2), 0.001)
    """
    whole = min(matrix.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = math.hypot(
            *(float(np.linalg.norm(np.asarray(matrix.rows(b), np.float64))) for b in row_blocks(matrix.shape))
        )
    if not math.isfinite(norm):
        raise AdapterError("the matrix is too large to compute with, or a number in it is not finite")
    limit = min(whole, largest if cut.is_open else whole if cut.rank is None else cut.rank)
    rank = min(limit, limit if cut.rank is not None else largest)
    while True:
        svd = _leading(matrix, min(whole, rank + OVERSAMPLED), generator)
        kept = cut.of(_with_rest(np.asarray(svd.S[:rank], np.float64), norm, whole - rank))
        if kept <= rank or rank >= limit:
            break
        rank = min(2 * rank, limit)
    result = truncated(svd, min(kept, rank))
    errors = [0.0]
    for block in row_blocks(matrix.shape):
        rows = np.asarray(matrix.rows(block), np.float64)
        errors.append(float(np.linalg.norm(rows - result.B[block].astype(np.float64) @ result.A)))
    return result._replace(norm=norm, error=math.hypot(*errors))


def _leading(matrix: Rows, width: int, generator: np.random.Generator) -> SVD:
    """About the ``width`` leading singular triples of the matrix: those of Q Qᵀ M."""
    found = np.float32 if matrix.rows(slice(0, 1)).dtype.itemsize < 8 else np.float64
    Y = _times(matrix, generator.standard_normal((matrix.shape[1], width)).astype(found))
    for _ in range(POWERS):
        Q = np.linalg.qr(_across(matrix, np.linalg.qr(Y).Q)).Q
        Y = _times(matrix, Q)
    Q = np.linalg.qr(Y).Q
    P, S, Vh = np.linalg.svd(_across(matrix, Q).T, full_matrices=False)
    return SVD(Q @ P, S, Vh)


def _with_rest(S: NDArray[np.float64], norm: float, most: int) -> NDArray[np.float64]:
    """S and what else the norm is made of, as equal values: so many that none is larger than the last of S, but no more
    than ``most``, those that the matrix has beside S."""
    rest = math.sqrt(max(norm**2 - float(S @ S), 0.0))
    if rest <= 1e-7 * norm or S[-1] == 0 or most < 1:  # the root of a rounding error
        return S
    count = math.ceil(min((rest / S[-1]) ** 2, most))
    return np.append(S, np.full(count, rest / math.sqrt(count)))


def _times(matrix: Rows, X: NDArray[Any]) -> NDArray[Any]:
    """M X."""
    result = np.empty((matrix.shape[0], X.shape[1]), X.dtype)
    for block in row_blocks(matrix.shape):
        result[block] = matrix.rows(block) @ X
    return result


def _across(matrix: Rows, Y: NDArray[Any]) -> NDArray[Any]:
    """Mᵀ Y."""
    result = np.zeros((matrix.shape[1], Y.shape[1]), Y.dtype)
    for block in row_blocks(matrix.shape):
        result += matrix.rows(block).T @ Y[block]
    return result
