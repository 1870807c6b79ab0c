"""Is one model better than another, or only luckier on these test adapters? A paired bootstrap over test groups.

Groups are drawn with replacement, as many as there are, and each model's score is taken on the same draw; the interval
is that of the middle 95 % of the differences. It holds the choice of the test adapters; the choice of the training
adapters shows in the spread over seeds. Drawing groups instead of adapters keeps near copies together (Efron and
Tibshirani 1993, §8).

A draw is a weight for each sample, the number of times that its group was drawn; many draws are scored at once:

    r2       1 − Σ w (y − p)² / Σ w (y − ȳ_w)²
    auroc    Σ_{i positive, j negative} w_i w_j ([p_i > p_j] + ½ [p_i = p_j]) / (Σ w_i Σ w_j), mean over labels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.targets import Target, Task

Matrix = NDArray[np.float64]

DRAWS = 2000
LEVEL = 0.95
BLOCK = 1 << 21
"""Weights that are held at a time: 16 MB."""


class Difference(NamedTuple):
    """A score minus another, with its 95 % interval; the interval is NaN where nothing can be drawn."""

    difference: float
    low: float
    high: float


def first_metric(task: Task) -> str:
    """The metric by which models are compared: ``r2`` of numbers, else ``auroc``."""
    return "r2" if task == "regression" else "auroc"


def chance(task: Task) -> float:
    """What a model that knows nothing scores: 0 in r2 (the mean), ½ in auroc."""
    return 0.0 if task == "regression" else 0.5


def above_chance(score: float, chance: float, best: float) -> float:
    """(score − chance) / (best − chance): 1 is as good as the best, 0 as good as knowing nothing.

    >>> round(above_chance(0.8, 0.5, 0.9), 12)
    0.75
    """
    return (score - chance) / (best - chance) if best != chance else float("nan")


def weighted_scores(target: Target, truth: Matrix, predicted: Matrix, weights: Matrix) -> Matrix:
    """The first metric under each row of weights.

    Args:
        target: whose task it is.
        truth: [n, width], as ``measure`` takes it.
        predicted: [n, width].
        weights: [draws, n].

    Returns:
        [draws]; NaN where a draw does not define it.
    """
    if target.task == "regression":
        return _weighted_r2(truth[:, 0], predicted[:, 0], weights)
    areas = np.stack([_weighted_area(truth[:, k] > 0.5, predicted[:, k], weights) for k in range(truth.shape[1])])
    known = np.isfinite(areas)
    counts = known.sum(axis=0)
    return np.where(counts > 0, np.where(known, areas, 0.0).sum(axis=0) / np.maximum(counts, 1), np.nan)


def paired_differences(
    target: Target,
    truth: Matrix,
    predictions: Sequence[Sequence[Matrix]],
    best: int,
    groups: Sequence[str],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[Difference]:
    """Each model's score minus that of the best.

    Args:
        target: what was predicted.
        truth: [n, width] of the test samples.
        predictions: of each model, of each of its members, [n, width]; a model's score is the mean of its members'.
        best: the place of the model that the others are compared with.
        groups: of the test samples.
        seed: of the draws, which all models share.
        draws: how many.
    """
    names, place = np.unique(np.asarray(groups, str), return_inverse=True)
    rng = np.random.default_rng(seed)
    whole = _all_scores(target, truth, predictions, np.ones((1, len(truth))))[:, 0]
    parts: list[Matrix] = []
    size = max(1, BLOCK // max(len(truth), 1))
    for start in range(0, draws if len(names) > 1 else 0, size):
        counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=min(size, draws - start))
        parts.append(_all_scores(target, truth, predictions, counts[:, place].astype(np.float64)))
    if not parts:
        return [Difference(float(score - whole[best]), np.nan, np.nan) for score in whole]
    drawn = np.concatenate(parts, axis=1)
    tail = 100 * (1 - LEVEL) / 2
    result: list[Difference] = []
    for score, row in zip(whole, drawn, strict=True):
        differences = row - drawn[best]
        differences = differences[np.isfinite(differences)]
        low, high = np.percentile(differences, [tail, 100 - tail]) if len(differences) else (np.nan, np.nan)
        result.append(Difference(float(score - whole[best]), float(low), float(high)))
    return result


def _all_scores(target: Target, truth: Matrix, predictions: Sequence[Sequence[Matrix]], weights: Matrix) -> Matrix:
    """[models, draws]."""
    return np.stack(
        [
            np.mean([weighted_scores(target, truth, member, weights) for member in members], axis=0)
            for members in predictions
        ]
    )


def _weighted_r2(y: Matrix, p: Matrix, weights: Matrix) -> Matrix:
    """[draws]; NaN where all drawn truths are equal."""
    residual = weights @ (y - p) ** 2
    centred = y - y.mean()  # the moments below would cancel around a large mean
    total = weights @ centred**2 - (weights @ centred) ** 2 / weights.sum(axis=1)
    varied = total > 1e-12 * float((centred**2).sum())
    return np.where(varied, 1 - residual / np.where(varied, total, 1.0), np.nan)


def _weighted_area(positive: NDArray[np.bool_], scores: Matrix, weights: Matrix) -> Matrix:
    """[draws]; by one sort of the scores, blocks of equal scores counting half. NaN where a class was not drawn."""
    order = np.argsort(scores, kind="stable")
    ordered, is_positive = scores[order], positive[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    drawn = weights[:, order]
    up = np.add.reduceat(drawn * is_positive, starts, axis=1)
    down = np.add.reduceat(drawn * ~is_positive, starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    pairs = up.sum(axis=1) * down.sum(axis=1)
    won = (up * (below + 0.5 * down)).sum(axis=1)
    return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1.0), np.nan)
