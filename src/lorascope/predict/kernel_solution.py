"""The weights of kernels put to use: solved on all training adapters, their noise, what each adapter gets left out.

Weights that were learned from the residuals of an adapter make its own residual too small, and so do principal
directions that it had a part in. So where all adapters taught the weights, the scores that calibrate are *crossed*: the
groups are parted in halves, and each half is left out, group by group, of a solution whose weights, penalty, centres
and directions the other half taught alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.kernel_learning import CONSTANT
from lorascope.predict.kernel_levels import Bundle, Level, weights_by_level
from lorascope.predict.kernel_logistic import best_penalty, fit_logistic
from lorascope.predict.kernel_machine import Comparison, Part
from lorascope.predict.leave_one_out import Blocks, Matrix, blocks_of_groups, left_out_residuals
from lorascope.predict.model import Inputs

NEGLIGIBLE = 1e-5
"""A part with less than this share of all weight is dropped."""
LEAST_GROUPS = 24
"""Halves of fewer groups teach no weights: the left-out scores stay those of the weights that all taught."""
NOISES = np.logspace(-2, 2, 17)
"""The λ that are tried on all adapters, relative to the one found on the subset."""


class Spectral(NamedTuple):
    """Eigenvalues and eigenvectors of K + c 11ᵀ."""

    values: Matrix
    vectors: Matrix


class Solution(NamedTuple):
    """A level solved on all training adapters: ``error`` is the mean squared left-out residual of least squares."""

    weights: Mapping[Part, float]
    error: float
    a: Matrix
    left_out: Matrix
    spectral: Spectral


class Doubt(NamedTuple):
    """A second function of the same kernel: the logarithm of how far off the first is likely to be.

    ``a`` [n, 1] and ``mean`` [1] make it; ``left_out`` [n] are its values at the training adapters, each left out.
    """

    a: Matrix
    mean: Matrix
    left_out: Matrix


def solutions_of(
    comparison: Comparison, inputs: Inputs, Y: Matrix, levels: Sequence[Level], blocks: Blocks
) -> list[Solution]:
    """Every level on all adapters, each with the noise that leaves out best."""
    kept: list[dict[Part, float]] = []
    for level in levels:
        least = NEGLIGIBLE * sum(level.weights.values())
        kept.append({part: weight for part, weight in level.weights.items() if weight > least})
    Ks = [np.full((len(Y), len(Y)), 0.0) for _ in levels]
    for part, gram in comparison.grams(inputs):
        for K, weights in zip(Ks, kept, strict=True):
            if part in weights:
                K += weights[part] * gram
    return [solved(K, Y, weights, level.noise, blocks) for K, weights, level in zip(Ks, kept, levels, strict=True)]


def solved(K: Matrix, Y: Matrix, weights: Mapping[Part, float], noise: float, blocks: Blocks) -> Solution:
    values, vectors = np.linalg.eigh(K + CONSTANT)
    spectral = Spectral(np.maximum(values, 0.0), vectors)
    tried = [_left_out(spectral, Y, max(noise * factor, 1e-9), blocks) for factor in NOISES]
    a, residuals = min(tried, key=lambda pair: float((pair[1] ** 2).mean()))
    return Solution(weights, float((residuals**2).mean()), a, Y - residuals, spectral)


def _left_out(spectral: Spectral, Y: Matrix, noise: float, blocks: Blocks) -> tuple[Matrix, Matrix]:
    """(a, the residuals that each group has when it is left out)."""
    vectors, shrink = spectral.vectors, 1.0 / (spectral.values + noise)
    a = vectors @ (shrink[:, None] * (vectors.T @ Y))

    def inverse(block: NDArray[np.int64]) -> Matrix:
        return (vectors[block] * shrink) @ vectors[block].T

    return a, left_out_residuals(a, (vectors**2) @ shrink, inverse, blocks)


def doubt_of(solution: Solution, left_out: Matrix, Y: Matrix, groups: Sequence[str]) -> Doubt:
    """Learn log(|left-out residual| + a tenth of the rms) with the same K; its mean alone where that tells nothing.

    The mean, and not none: the two functions of a model share the quantile of one, so both must be in one unit.
    """
    blocks = blocks_of_groups(groups)
    size = np.abs(Y - left_out).mean(axis=1, keepdims=True)
    logs = np.log(size + 0.1 * np.sqrt((size**2).mean()) + 1e-12)
    mean, scale = logs.mean(axis=0), float(logs.std())
    constant = Doubt(np.zeros_like(logs), mean, np.full(len(logs), mean[0]))
    if scale < 1e-9:
        return constant
    Z = (logs - mean) / scale
    mean_diagonal = float(solution.spectral.values.mean())
    tried = [_left_out(solution.spectral, Z, mean_diagonal * factor, blocks) for factor in np.logspace(-3, 3, 13)]
    a, residuals = min(tried, key=lambda pair: float((pair[1] ** 2).mean()))
    if float((residuals**2).mean()) >= 1.0:
        return constant
    return Doubt(a * scale, mean, (mean + scale * (Z - residuals))[:, 0])


def by_logistic(
    solution: Solution, classes: Matrix, groups: Sequence[str], taught: NDArray[np.int64]
) -> tuple[Matrix, Matrix]:
    """(a, left-out scores) [n, t] of logistic regression with the solution's kernel.

    Args:
        solution: of least squares.
        classes: [n, t], zeros and ones.
        groups: of the samples.
        taught: those that the penalty is chosen on.
    """
    values, vectors = solution.spectral
    K = (vectors * values) @ vectors.T
    own = blocks_of_groups([groups[int(i)] for i in taught])
    unit = max(sum(solution.weights.values()), 1e-12)
    penalty = best_penalty(K[np.ix_(taught, taught)], classes[taught], own, unit)
    fitted = fit_logistic(K, classes, penalty, blocks_of_groups(groups))
    return fitted.a, fitted.left_out


class Learning(NamedTuple):
    """How weights are learned: through which levels, of which kernels."""

    levels: Sequence[Sequence[str]]
    kernels: frozenset[str]


def crossed(
    teach: Callable[[NDArray[np.int64]], Sequence[Bundle]],
    learnings: Sequence[Learning],
    Y: Matrix,
    groups: Sequence[str],
    seed: int,
    classes: Matrix | None = None,
) -> list[Matrix | None]:
    """For each way to learn, the left-out scores [n, t] by what the other half of the groups taught; None of too few.

    Args:
        teach: the kernels of all samples, with the directions and centres that these ones teach.
        learnings: what is learned from them.
        Y: [n, t], standardised.
        groups: of the samples.
        seed: of the halves.
        classes: [n, t]: the scores are those of logistic regression.
    """
    names = sorted(set(groups))
    if len(names) < LEAST_GROUPS:
        return [None] * len(learnings)
    first = set(np.random.default_rng(seed).permutation(len(names))[: len(names) // 2].tolist())
    is_first = np.asarray([name in {names[k] for k in first} for name in groups])
    left_out = [np.zeros_like(Y) for _ in learnings]
    for is_own in (is_first, ~is_first):
        taught = np.flatnonzero(~is_own)
        bundles = teach(taught)
        for learning, scores in zip(learnings, left_out, strict=True):
            kept = [bundle for bundle in bundles if bundle.parts[0].kernel in learning.kernels]
            scores[is_own] = _by_others(kept, learning.levels, Y, groups, taught, classes)[is_own]
    return [*left_out]


def _by_others(
    bundles: Sequence[Bundle],
    levels: Sequence[Sequence[str]],
    Y: Matrix,
    groups: Sequence[str],
    taught: NDArray[np.int64],
    classes: Matrix | None,
) -> Matrix:
    """Left-out scores of all samples, with weights and penalty by some."""
    part = [Bundle(parts, gram[np.ix_(taught, taught)]) for parts, gram in bundles]
    own = blocks_of_groups([groups[int(i)] for i in taught])
    level = weights_by_level(part, Y[taught], own, levels)[-1]
    K = np.zeros((len(Y), len(Y)))
    for parts, gram in bundles:
        K += sum(level.weights[one] for one in parts) * gram
    solution = solved(K, Y, level.weights, level.noise, blocks_of_groups(groups))
    return solution.left_out if classes is None else by_logistic(solution, classes, groups, taught)[1]
