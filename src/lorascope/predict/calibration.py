"""From scores to values and probabilities.

classification   p = sigmoid of slope · score + intercept, by logistic regression on scores of samples whose targets
                 did not set the weights (Platt 1999); of one class among several, divided by the sum over classes
regression       score · spread + mean of the target

The samples did choose when to stop training, or the penalties, so probabilities hold approximately; whether they do
is measured on the test split (``brier``, ``ece``). Intervals are those of ``intervals``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import MissingExtraError
from lorascope.predict.targets import Target


@dataclass(frozen=True)
class Calibration:
    """``slope`` and ``intercept`` [width] for classification; 1 and 0 for regression."""

    slope: NDArray[np.float64]
    intercept: NDArray[np.float64]

    @classmethod
    def fit(cls, target: Target, scores: NDArray[np.float64], truth: NDArray[np.float64]) -> Calibration:
        """From scores [n, width] and encoded targets of samples that did not set the weights."""
        width = scores.shape[1]
        if target.task == "regression":
            return cls(np.ones(width), np.zeros(width))
        fitted = [_platt(scores[:, k], truth[:, k]) for k in range(width)]
        return cls(np.asarray([a for a, _ in fitted]), np.asarray([b for _, b in fitted]))

    def predict(self, target: Target, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, width]: values in the target's unit, or probabilities."""
        if target.task == "regression":
            return scores * target.spread + target.mean
        logits = np.clip(scores * self.slope + self.intercept, -30.0, 30.0)
        probabilities = 1.0 / (1.0 + np.exp(-logits))
        if target.task == "multi-class":
            return probabilities / probabilities.sum(axis=1, keepdims=True)
        return probabilities


def _platt(scores: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    """(slope, intercept) of a logistic regression on one score, the slope kept from running off.

    Of no samples (1, 0): scores of networks are logits.
    """
    if not len(truth):
        return 1.0, 0.0
    share = float(np.clip(truth.mean(), 0.01, 0.99))
    prior = math.log(share / (1 - share))
    spread = float(scores.std())
    if not (0 < truth.sum() < len(truth)) or spread < 1e-12:
        return 0.0, prior
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtraError.of("scikit-learn", "learn", "fitting a predictor") from error
    standard = (scores - scores.mean()) / spread
    fitted = LogisticRegression(C=10.0).fit(standard[:, None], truth.astype(int))
    slope = max(float(fitted.coef_[0, 0]), 0.0) / spread
    return slope, float(fitted.intercept_[0]) - slope * float(scores.mean())
