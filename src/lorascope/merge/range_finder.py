"""A matrix of full rank as factors of a low one, without holding it: a randomised range finder, its error measured.

    Y = M Ω,  Q = qr(Y),  Q ← qr(M (Mᵀ Q)) a few times,  C = Qᵀ M = P S Vᵀ   ⟹   M ≈ (Q P)_k S_k V_kᵀ

M is asked for in blocks of rows, once for each pass. The result is near the best of its rank; how near is not taken on
trust: the error is measured against M in a last pass.

Source: Halko, Martinsson & Tropp (2011), arXiv 0909.4061, algorithms 4.4 and 5.1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter.rows import row_blocks
from lorascope.merge.method import Rows
from lorascope.symmetry.canonical import SVD
from lorascope.symmetry.truncation import Cut, Truncated, truncated

OVERSAMPLED, POWERS = 16, 2


def low_rank(matrix: Rows, cut: Cut, largest: int, generator: np.random.Generator) -> Truncated:
    """The leading part of the matrix; ``norm`` and ``error`` are measured against it block by block.

    Args:
        matrix: [out, in].
        cut: how much of it is kept, of at most ``largest`` singular values.
        largest: the rank that is looked for where ``cut`` names none.
        generator: of Ω.

    >>> wanted = np.diag([3.0, 2.0, 1e-3, 0.0])
    >>> found = low_rank(Rows((4, 4), lambda rows: wanted[rows]), Cut(rank=2), 4, np.random.default_rng(0))
    >>> found.B.shape, round(found.error, 6)
    ((4, 2), 0.001)
    """
    out, in_ = matrix.shape
    rank = min(out, in_, largest if cut.rank is None else cut.rank)
    width = min(out, in_, rank + OVERSAMPLED)
    found = np.float32 if matrix.rows(slice(0, 1)).dtype.itemsize < 8 else np.float64
    Y = _times(matrix, generator.standard_normal((in_, width)).astype(found))
    for _ in range(POWERS):
        Q = np.linalg.qr(_across(matrix, np.linalg.qr(Y).Q)).Q
        Y = _times(matrix, Q)
    Q = np.linalg.qr(Y).Q
    P, S, Vh = np.linalg.svd(_across(matrix, Q).T, full_matrices=False)
    kept = min(rank, cut.of(S))
    result = truncated(SVD(Q @ P, S, Vh), kept)
    norms, errors = [0.0], [0.0]
    for block in row_blocks(matrix.shape):
        rows = np.asarray(matrix.rows(block), np.float64)
        norms.append(float(np.linalg.norm(rows)))
        errors.append(float(np.linalg.norm(rows - result.B[block].astype(np.float64) @ result.A)))
    return result._replace(norm=math.hypot(*norms), error=math.hypot(*errors))


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
