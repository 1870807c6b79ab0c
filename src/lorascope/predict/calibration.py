"""From scores to statements: calibrated probabilities, and intervals meant to hold 90 % of truths.

classification   p = sigmoid (softmax) of slope · score + intercept, by logistic regression on scores of samples
                 whose targets did not set the weights (Platt 1999)
regression       score ± q, with q the ⌈0.9 (n + 1)⌉-th smallest absolute residual on such samples: split
                 conformal prediction (Vovk et al. 2005); for leave-one-out residuals, the jackknife

The samples did choose when to stop training, or the penalties, so the promises hold approximately; whether they do
is measured on the test split (``coverage_90``, ``brier``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import MissingExtraError
from lorascope.predict.targets import Target

LEVEL = 0.9
"""The share of truths that an interval is to hold."""


@dataclass(frozen=True)
class Calibration:
    """``slope`` and ``intercept`` [width] for classification; ``half_width`` in the target's unit for regression.

    ``half_width`` is infinite where there were too few samples (fewer than nine) to promise anything.
    """

    slope: NDArray[np.float64]
    intercept: NDArray[np.float64]
    half_width: float = math.inf

    @classmethod
    def fit(cls, target: Target, scores: NDArray[np.float64], truth: NDArray[np.float64]) -> Calibration:
        """From scores [n, width] and encoded targets of samples that did not set the weights."""
        width = scores.shape[1]
        if target.task == "regression":
            residuals = np.sort(np.abs(scores - truth)[:, 0]) * target.spread
            place = math.ceil(LEVEL * (len(residuals) + 1))
            half = float(residuals[place - 1]) if place <= len(residuals) else math.inf
            return cls(np.ones(width), np.zeros(width), half)
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
    """(slope, intercept) of a logistic regression on one score, the slope kept from running off."""
    share = float(np.clip(truth.mean(), 0.01, 0.99)) if len(truth) else 0.5
    prior = math.log(share / (1 - share))
    spread = float(scores.std()) if len(scores) else 0.0
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
