"""Intervals and sets that hold their share of truths, for what a whole predictor says: the mean of its members.

regression              value ± q · s,  q the conformal quantile of |truth − value| / s over left-out samples
binary, multi-class     every class with probability 1 − q or more,  q that of 1 − probability of the true class

A sample is left out for a member where it set nothing of it: a training sample of a closed-form model by
leave-one-out, and a sample held from both the training and the stopping of the member. The left-out value of a sample
is the mean over the members that have one, so that residuals are those of the mean that is issued and not of its
noisier members. s is the model's own spread of a prediction where it gives one (``FittedModel``), else 1.

For one member and held samples the promise is exact. The samples of a closed-form model chose its few penalties:
leave-one-out residuals are that much too small. Networks calibrated on the samples that stopped them would lose up to
2 points of coverage where these are 60. All of it is measured in experiments/learning-on-loras/coverage.md. Leaving
out the group along with the sample is the model's part; here every group counts once (``conformal``).

Source: Vovk, Gammerman & Shafer (2005); Lei et al. (2018), normalised residuals; Barber et al. (2021), jackknife and
cross-validation; Sadinle, Lei & Wasserman (2019), sets of least size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.calibration import Calibration
from lorascope.predict.conformal import Conformal
from lorascope.predict.model import FittedModel, Inputs, Split
from lorascope.predict.targets import Target

LEVEL = 0.9
"""The share of truths that an interval is to hold, unless another is asked for."""

Matrix = NDArray[np.float64]


class Trained(NamedTuple):
    """A member, what it was trained on and what it never saw, and the places [n] of both among all samples.

    ``is_left_out``: whether the scores of ``fitted.calibration`` are those of ``train``, each left out with its group.
    """

    fitted: FittedModel
    calibration: Calibration
    train: Split
    held: Split
    train_places: NDArray[np.int64]
    held_places: NDArray[np.int64]
    is_left_out: bool

    def unseen(self) -> tuple[Matrix, Matrix]:
        """Scores and truth [n, width] of the samples that calibrate the member; none where there are none."""
        return unseen_by(self.fitted, self.held, is_left_out=self.is_left_out)


def unseen_by(fitted: FittedModel, held: Split, *, is_left_out: bool) -> tuple[Matrix, Matrix]:
    """Scores and truth of the training samples by leave-one-out, else of the held ones, as far as there are any."""
    if is_left_out or not len(held.targets):
        return fitted.calibration
    return fitted.scores(held.inputs), held.targets


def gives_spreads(fitted: FittedModel) -> bool:
    """Whether the model says how far off its scores are likely to be."""
    return hasattr(fitted, "scores_and_spreads")


def scores_and_spreads(fitted: FittedModel, inputs: Inputs) -> tuple[Matrix, Matrix]:
    """Scores [n, width] and the model's own spread of each [n], ones where it gives none."""
    if not gives_spreads(fitted):
        scores = fitted.scores(inputs)
        return scores, np.ones(len(scores))
    scores, spreads = fitted.scores_and_spreads(inputs)  # type: ignore[attr-defined]  # optional
    return scores, np.asarray(spreads, np.float64).reshape(len(scores))


def calibrate(target: Target, members: Sequence[Trained], truth: Matrix, groups: Sequence[str]) -> Conformal | None:
    """From the encoded truth [n, width] of all samples outside the test split, and their groups.

    None for multi-label targets, whose labels have probabilities and no set.
    """
    if target.task == "multi-label":
        return None
    values, spreads, known = _left_out(target, members, truth)
    actual = truth * target.spread + target.mean if target.task == "regression" else truth
    strangeness = nonconformity(target, values[known], actual[known], spreads[known])
    return Conformal.of(strangeness, [groups[i] for i in known])


def nonconformity(target: Target, values: Matrix, truth: Matrix, spreads: Matrix) -> Matrix:
    """[n]: |truth − value| / spread, or 1 − the probability of the true class; 1 for a class never seen."""
    if target.task == "regression":
        return np.abs(truth - values)[:, 0] / spreads
    if target.task == "binary":
        return 1.0 - np.where(truth[:, 0] >= 0.5, values[:, 0], 1.0 - values[:, 0])
    return 1.0 - (truth * values).sum(axis=1)


def measure_intervals(
    target: Target, conformal: Conformal | None, values: Matrix, truth: Matrix, spreads: Matrix
) -> dict[str, float]:
    """``coverage_90``, the share of truths in the intervals (sets) of level 0.9; and their mean width or size.

    Nothing where the predictor issues none.
    """
    if conformal is None or not len(values):
        return {}
    q = conformal.quantile(LEVEL)
    if not np.isfinite(q):
        return {}
    if target.task == "regression":
        is_held = nonconformity(target, values, truth, spreads) <= q
        return {"coverage_90": float(is_held.mean()), "width_90": float(2 * q * spreads.mean())}
    sets = np.stack([is_in_set(target, row, q) for row in values])
    actual = np.concatenate([1 - truth, truth], axis=1) if target.task == "binary" else truth
    return {"coverage_90": float((sets & (actual > 0)).any(1).mean()), "set_size_90": float(sets.sum(1).mean())}


def is_in_set(target: Target, probabilities: Matrix, q: float) -> NDArray[np.bool_]:
    """[classes]: which classes are in the set of one sample; the likeliest always is."""
    p = np.asarray([1 - probabilities[0], probabilities[0]]) if target.task == "binary" else probabilities
    return (p >= 1.0 - q - 1e-12) | (p == p.max())


def _left_out(target: Target, members: Sequence[Trained], truth: Matrix) -> tuple[Matrix, Matrix, NDArray[np.int64]]:
    """Left-out values [n, width] and spreads [n], and the places of the samples that have one."""
    total, spread, count = np.zeros_like(truth), np.zeros(len(truth)), np.zeros(len(truth))
    unit = target.spread if target.task == "regression" else 1.0
    for member in members:
        for places, scores, own in _left_out_of(member):
            total[places] += member.calibration.predict(target, scores)
            spread[places] += own * unit
            count[places] += 1
    known = np.flatnonzero(count)
    count = np.maximum(count, 1)
    has_spreads = all(gives_spreads(member.fitted) for member in members)
    return total / count[:, None], spread / count if has_spreads else np.ones(len(truth)), known


def _left_out_of(member: Trained) -> list[tuple[NDArray[np.int64], Matrix, Matrix]]:
    """(places, scores, spreads) of samples that set nothing of the member."""
    parts: list[tuple[NDArray[np.int64], Matrix, Matrix]] = []
    if member.is_left_out:
        scores = member.fitted.calibration[0]
        own = getattr(member.fitted, "calibration_spreads", None)
        own = np.ones(len(scores)) if own is None else np.asarray(own, np.float64).reshape(len(scores))
        parts.append((member.train_places, scores, own))
    if len(member.held_places):
        parts.append((member.held_places, *scores_and_spreads(member.fitted, member.held.inputs)))
    return parts
