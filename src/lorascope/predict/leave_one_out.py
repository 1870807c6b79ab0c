"""Ridge regression over groups of features, with everything chosen by closed-form leave-one-out.

Features are standardised with training statistics. Each group g of d_g columns gives a kernel K_g = Z_g Z_gᵀ / d_g,
and ridge regression with one penalty per group is kernel ridge with K = Σ w_g K_g. With an intercept, the hat
matrix is H = 11ᵀ/n + K (K + λI)⁻¹ (K1 = 0 as the columns are centred), and the residual that sample i would
have if it were left out is exactly (y − ŷ)_i / (1 − H_ii), the columns' statistics held fixed. λ and w minimise
the mean square of these. Where samples come in groups (seeds of one data set, adapters of one person) a whole group
is left out: its residuals are (I − H_gg)⁻¹ (y − ŷ)_g.

Source: Allen (1974), PRESS; Golub, Heath & Wahba (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Blocks = list[NDArray[np.int64]]

PENALTIES = np.logspace(-6, 3, 28)
"""The λ that are tried, relative to the mean of the diagonal of K."""


class Columns(NamedTuple):
    """Training statistics of a group's columns."""

    mean: Matrix
    spread: Matrix

    @classmethod
    def of(cls, X: Matrix) -> Columns:
        """Mean and standard deviation; a column that hardly varies is not blown up.

        The floor of the spread is a twentieth of the group's root mean square: a column below it carries rounding
        rather than knowledge. A constant group has spread 1.
        """
        spread = X.std(axis=0)
        floor = 0.05 * float(np.sqrt((spread**2).mean()))
        return cls(X.mean(axis=0), np.maximum(spread, floor) if floor > 0 else np.ones_like(spread))

    def standardise(self, X: Matrix) -> Matrix:
        """(X − mean) / spread."""
        return (X - self.mean) / self.spread


@dataclass(frozen=True)
class RidgeSolution:
    """ŷ(x) = intercept + Σ_g x_g · coefficients_g, in the unstandardised features.

    ``coefficients`` name → [d_g, t]; ``intercept`` [t]; ``weights`` name → w_g; ``penalty`` λ relative to the mean
    diagonal of K; ``left_out`` [n, t]: what each training sample is predicted as by the other n − 1.
    """

    coefficients: Mapping[str, Matrix]
    intercept: Matrix
    weights: Mapping[str, float]
    penalty: float
    left_out: Matrix

    def predict(self, groups: Mapping[str, Matrix]) -> Matrix:
        """[n, t]."""
        total = sum(groups[name] @ weight for name, weight in self.coefficients.items())
        return total + self.intercept


class _Spectral(NamedTuple):
    """What leave-one-out needs of one K: its eigenvalues, squared eigenvectors and the rotated targets."""

    values: Matrix
    vectors: Matrix
    rotated: Matrix

    @classmethod
    def of(cls, K: Matrix, Y: Matrix) -> _Spectral:
        values, vectors = np.linalg.eigh(K)
        return cls(np.maximum(values, 0.0), vectors, vectors.T @ Y)


def left_out_residuals(
    dual: Matrix, diagonal: Matrix, matrix_of: Callable[[NDArray[np.int64]], Matrix], blocks: Blocks
) -> Matrix:
    """The residuals e_b = (P_bb)⁻¹ (P y)_b [n, t] that samples b would have if they were left out.

    P is what makes the dual coefficients from the targets: (K + λI)⁻¹, less 11ᵀ/(nλ) of an intercept; or λ times that,
    which is I − H.

    Args:
        dual: P y, [n, t].
        diagonal: of P, [n].
        matrix_of: b → P_bb.
        blocks: the groups of two or more, which are left out together.
    """
    residuals = dual / diagonal[:, None]
    for block in blocks:
        residuals[block] = np.linalg.solve(matrix_of(block), dual[block])
    return residuals


def _centred_residuals(spectral: _Spectral, Y: Matrix, penalty: float, blocks: Blocks) -> Matrix:
    """[n, t], for centred Y."""
    n = len(Y)
    shrink = spectral.values / (spectral.values + penalty)
    residuals = Y - spectral.vectors @ (shrink[:, None] * spectral.rotated)
    leverage = 1.0 / n + (spectral.vectors**2) @ shrink

    def rest(block: NDArray[np.int64]) -> Matrix:
        V = spectral.vectors[block]
        # I − H_gg is singular only where the others say nothing at all of the group
        return np.eye(len(block)) - 1.0 / n - (V * shrink) @ V.T + 1e-9 * np.eye(len(block))

    return left_out_residuals(residuals, np.maximum(1.0 - leverage, 1e-9), rest, blocks)


def blocks_of_groups(groups: Sequence[Any] | None) -> Blocks:
    """The indices of every group of two or more."""
    places: dict[Any, list[int]] = {}
    for index, group in enumerate(groups if groups is not None else ()):
        places.setdefault(group, []).append(index)
    return [np.asarray(indices) for indices in places.values() if len(indices) > 1]


def _best_penalty(K: Matrix, Y: Matrix, blocks: Blocks) -> tuple[float, float]:
    """(leave-one-out error relative to that of the mean, the relative penalty that has it)."""
    unit = float(np.trace(K)) / len(K)
    if not unit > 0:  # constant features: nothing but the mean can be said
        return np.inf, 1.0
    spectral = _Spectral.of(K, Y)
    total = float((Y**2).sum(axis=0).mean()) or 1.0  # a label that the samples never have is all zero
    errors = [
        float((_centred_residuals(spectral, Y, float(penalty) * unit, blocks) ** 2).sum(axis=0).mean()) / total
        for penalty in PENALTIES
    ]
    best = int(np.argmin(errors))
    return errors[best], float(PENALTIES[best])


def kernels_of(groups: Mapping[str, Matrix]) -> tuple[dict[str, Columns], dict[str, Matrix]]:
    """The statistics of every group's columns, and K_g = Z_g Z_gᵀ / d_g."""
    columns = {name: Columns.of(X) for name, X in groups.items()}
    # one standardised group at a time: together they would double the memory of the features
    kernels: dict[str, Matrix] = {}
    for name, X in groups.items():
        Z = columns[name].standardise(X)
        kernels[name] = Z @ Z.T / X.shape[1]
    return columns, kernels


def primal(
    groups: Mapping[str, Matrix],
    columns: Mapping[str, Columns],
    weights: Mapping[str, float],
    dual: Matrix,
    intercept: Matrix,
) -> tuple[dict[str, Matrix], Matrix]:
    """Coefficients, and the intercept they need, of x ↦ Σ_i dual_i K(x_i, x) + intercept in unstandardised features."""
    coefficients: dict[str, Matrix] = {}
    for name, weight in weights.items():
        Z = columns[name].standardise(groups[name])
        slope = (weight / Z.shape[1]) * (Z.T @ dual) / columns[name].spread[:, None]
        coefficients[name] = slope
        intercept = intercept - columns[name].mean @ slope
    return coefficients, intercept


def search_weights(kernels: Mapping[str, Matrix], Y: Matrix, rounds: int, blocks: Blocks) -> dict[str, float]:
    """Weights on the simplex: the best of each kernel alone and all alike, then steps of one weight at a time.

    ``Y`` [n, t] is centred; at most ``rounds`` passes over the weights; ``blocks`` as from ``blocks_of_groups``.
    """
    names = list(kernels)

    def error_of(weights: dict[str, float]) -> float:
        K = np.add.reduce([weight * kernels[name] for name, weight in weights.items() if weight > 0])
        return _best_penalty(K, Y, blocks)[0]

    starts = [dict.fromkeys(names, 1.0 / len(names))]
    if len(names) > 1:
        starts += [{name: float(name == one) for name in names} for one in names]
    error, weights = min(((error_of(start), start) for start in starts), key=lambda pair: pair[0])
    for _ in range(rounds if len(names) > 1 else 0):
        before = error
        for name in names:
            for factor in (0.25, 4.0):
                moved = {**weights, name: factor * max(weights[name], 0.05)}
                total = sum(moved.values())
                moved = {key: value / total for key, value in moved.items()}
                if (moved_error := error_of(moved)) < error:
                    error, weights = moved_error, moved
        if before - error < 1e-3 * before:
            break
    return {name: weight for name, weight in weights.items() if weight > 1e-4}


def fit_ridge(
    groups: Mapping[str, Matrix], Y: Matrix, *, sample_groups: Sequence[Any] | None = None, rounds: int = 2
) -> RidgeSolution:
    """Ridge regression of Y [n, t] on groups of features, name → [n, d_g].

    The weights of the groups and the penalty are shared by the t targets, which should be of like scale. Samples of
    one value of ``sample_groups`` are left out together; by default each is alone.
    Cost: an eigendecomposition n × n for each weighting tried, at most (groups + 1) + 2 · rounds · groups.

    >>> import numpy as np
    >>> x = np.linspace(-1, 1, 9)[:, None]
    >>> solution = fit_ridge({"x": x, "noise": np.cos(9 * x)}, 2 * x + 1)
    >>> bool(np.abs(solution.predict({"x": x, "noise": np.cos(9 * x)}) - 2 * x - 1).max() < 1e-3)
    True
    """
    columns, kernels = kernels_of(groups)
    mean = Y.mean(axis=0)
    weights, relative, dual, left_out = _solved(kernels, Y, blocks_of_groups(sample_groups), rounds)
    coefficients, intercept = primal(groups, columns, weights, dual, mean)
    return RidgeSolution(coefficients, intercept, weights, relative, left_out)


def _solved(
    kernels: Mapping[str, Matrix], Y: Matrix, blocks: Blocks, rounds: int
) -> tuple[dict[str, float], float, Matrix, Matrix]:
    """(weights, relative penalty, dual [n, t], left-out predictions [n, t]) for kernels whose rows sum to 0."""
    centred = Y - Y.mean(axis=0)
    weights = search_weights(kernels, centred, rounds, blocks)
    K = np.add.reduce([weight * kernels[name] for name, weight in weights.items()])
    _, relative = _best_penalty(K, centred, blocks)
    penalty = relative * (float(np.trace(K)) / len(K) or 1.0)
    dual = np.linalg.solve(K + penalty * np.eye(len(K)), centred)
    left_out = Y - _centred_residuals(_Spectral.of(K, centred), centred, penalty, blocks)
    return weights, relative, dual, left_out


@dataclass(frozen=True)
class KernelSolution:
    """ŷ(x) = intercept + Σ_i k(x, x_i) · dual_i, k = Σ_g weights_g k_g, k_g as they were given.

    ``dual`` [n, t], of which each column sums to 0; ``intercept`` [t]; ``weights`` name → the factor of k_g;
    ``penalty`` λ relative to the mean diagonal of the centred K; ``left_out`` as for ``RidgeSolution``.
    """

    dual: Matrix
    intercept: Matrix
    weights: Mapping[str, float]
    penalty: float
    left_out: Matrix

    def predict(self, kernels: Mapping[str, Matrix]) -> Matrix:
        """[m, t] from k_g between m new samples and the n of training, name → [m, n]."""
        total = np.zeros((len(next(iter(kernels.values()))), len(self.intercept))) + self.intercept
        for name, weight in self.weights.items():
            total += weight * (kernels[name] @ self.dual)
        return total


def centred_gram(K: Matrix) -> tuple[Matrix, Matrix]:
    """The Gram matrix of the features less their mean, and the means of the rows of K [n].

    >>> centred_gram(np.array([[1.0, 2.0], [2.0, 4.0]]))[0]  # of the features 1 and 2
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """
    mean = K.mean(axis=0)
    return K - mean - mean[:, None] + float(mean.mean()), mean


def fit_kernel_ridge(
    kernels: Mapping[str, Matrix], Y: Matrix, *, sample_groups: Sequence[Any] | None = None, rounds: int = 2
) -> KernelSolution:
    """As ``fit_ridge``, for kernels among the training samples, name → [n, n], instead of features.

    Each kernel is centred (features minus their training mean) and divided by its mean diagonal, so that
    weights compare; a kernel that says nothing (constant features) is left out.

    >>> import numpy as np
    >>> x = np.linspace(-1, 1, 9)[:, None]
    >>> solution = fit_kernel_ridge({"x": x @ x.T}, 2 * x + 1)
    >>> bool(np.abs(solution.predict({"x": x @ x.T}) - 2 * x - 1).max() < 1e-3)
    True
    """
    units: dict[str, float] = {}
    centred: dict[str, Matrix] = {}
    for name, K in kernels.items():
        rest, _ = centred_gram(K)
        unit = float(np.trace(rest)) / len(K)
        if unit > 1e-12 * float(np.trace(K)) / len(K):
            units[name], centred[name] = unit, rest / unit
    if not centred:
        nothing = np.zeros_like(Y)
        return KernelSolution(nothing, Y.mean(axis=0), {}, 1.0, nothing + Y.mean(axis=0))
    weights, relative, dual, left_out = _solved(centred, Y, blocks_of_groups(sample_groups), rounds)
    weights = {name: weight / units[name] for name, weight in weights.items()}
    means = sum(weight * kernels[name].mean(axis=0) for name, weight in weights.items())
    return KernelSolution(dual, Y.mean(axis=0) - means @ dual, weights, relative, left_out)
