"""Logistic regression with a kernel, and what it would say of each group of samples had it been left out.

    a = argmin Σ_i log(1 + exp(f_i)) − y_i f_i + λ/2 aᵀKa,    f = K a

Newton's steps are ridge regressions: with p = σ(f), W = diag p(1 − p) and z = f + W⁻¹(y − p), the next a is M⁻¹ z,
M = K + λ W⁻¹. At the end the ridge regression of the last step leaves out exactly, which is what the logistic one gives
when left out to first order in the change of f: z_b − [(M⁻¹)_bb]⁻¹ a_b. So these scores are approximate where those of
least squares are exact; ``tests/predict/test_kernel_logistic.py`` measures by how much.

Source: Cawley & Talbot (2008), approximate leave-one-out for kernel logistic regression; Rad & Maleki (2020).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import MissingExtraError
from lorascope.predict.leave_one_out import Blocks, Matrix, left_out_residuals

STEPS, HALVINGS, CLOSE = 50, 20, 1e-6
LEAST_WEIGHT = 1e-8
"""Of W: samples that are told for certain would weigh nothing, and M would have infinite entries."""
PENALTIES = tuple(float(penalty) for penalty in np.logspace(-3, 1, 7))
"""The λ that are tried, in units of the mean diagonal of K less its constant."""


class Logistic(NamedTuple):
    """``a`` and ``left_out``, scores before the sigmoid, [n, t]; ``loss``, the mean of that of the left-out scores."""

    a: Matrix
    left_out: Matrix
    loss: float


def fit_logistic(K: Matrix, Y: Matrix, penalty: float, blocks: Blocks, start: Matrix | None = None) -> Logistic:
    """One function for each column of ``Y`` [n, t], of zeros and ones.

    Args:
        K: [n, n], with the constant that is the prior of the intercept.
        Y: the classes.
        penalty: λ.
        blocks: the groups of two or more samples, which are left out together.
        start: a of a similar penalty, [n, t].

    >>> K = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> found = fit_logistic(K, np.array([[1.0], [0.0]]), 1.0, [])
    >>> bool(np.allclose(found.a, np.array([[1.0], [0.0]]) - 1 / (1 + np.exp(-K @ found.a))))
    True
    """
    a, left_out = np.zeros_like(Y), np.zeros_like(Y)
    for column, y in enumerate(Y.T):
        first = np.zeros(len(y)) if start is None else start[:, column]
        a[:, column], left_out[:, column] = _one(K, y, penalty, blocks, first)
    return Logistic(a, left_out, float(_losses(left_out, Y).mean()))


def best_penalty(K: Matrix, Y: Matrix, blocks: Blocks, unit: float) -> float:
    """The λ among ``PENALTIES`` · ``unit`` whose left-out scores have the least loss."""
    found: list[tuple[float, float]] = []
    start: Matrix | None = None
    for factor in reversed(PENALTIES):
        one = fit_logistic(K, Y, factor * unit, blocks, start)
        start = one.a
        found.append((one.loss, factor * unit))
    return min(found)[1]


def _losses(scores: Matrix, Y: Matrix) -> Matrix:
    return np.logaddexp(0.0, scores) - Y * scores


def _one(K: Matrix, y: Matrix, penalty: float, blocks: Blocks, a: Matrix) -> tuple[Matrix, Matrix]:
    """a [n] and the left-out scores [n] of one column."""
    try:
        from scipy.linalg import cho_factor, cho_solve, get_lapack_funcs
    except ImportError as error:
        raise MissingExtraError.of("scipy", "learn", "fitting the model kernels") from error

    def objective(a: Matrix, f: Matrix) -> float:
        return float(_losses(f, y).sum() + penalty / 2 * (a @ f))

    f = K @ a
    value = objective(a, f)
    for _ in range(STEPS):
        root, z = _step(K, y, penalty, f, cho_factor)
        ahead = cho_solve((root, True), z)
        share = 1.0
        for _ in range(HALVINGS):
            new = a + share * (ahead - a)
            moved = K @ new
            reached = objective(new, moved)
            if reached <= value:
                break
            share /= 2
        else:  # no step goes down: this is the bottom, to rounding
            break
        change = float(np.abs(moved - f).max())
        a, f, value = new, moved, reached
        if change < CLOSE:
            break
    root, z = _step(K, y, penalty, f, cho_factor)
    a = cho_solve((root, True), z)
    [invert] = get_lapack_funcs(("trtri",), (root,))
    inverse_root, _ = invert(root, lower=True)

    def inverse(block: NDArray[np.int64]) -> Matrix:
        part = inverse_root[:, block]
        return part.T @ part

    return a, z - left_out_residuals(a[:, None], (inverse_root**2).sum(axis=0), inverse, blocks)[:, 0]


def _step(K: Matrix, y: Matrix, penalty: float, f: Matrix, cho_factor) -> tuple[Matrix, Matrix]:  # of scipy
    """The lower Cholesky factor of M, and z."""
    p = 1.0 / (1.0 + np.exp(-np.clip(f, -500.0, 500.0)))
    W = np.maximum(p * (1 - p), LEAST_WEIGHT)
    M = K.copy()
    M[np.diag_indices(len(y))] += penalty / W
    root, _ = cho_factor(M, lower=True, overwrite_a=True)
    return np.tril(root), f + (y - p) / W
