"""How good predictions are, each metric under its true name.

regression     r2, kendall_tau (τ-b), mae
binary         accuracy at probability ½, auroc, brier, ece
multi-label    the same four, each the mean over labels (auroc: those that take both values among the samples)
multi-class    accuracy, auroc (one against the rest, mean over classes that occur), brier, ece (means over classes)

What the intervals of a whole predictor hold is measured by ``intervals``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import MissingExtraError
from lorascope.predict.targets import Target

UNDEFINED = float("nan")


def measure(
    target: Target,
    truth: NDArray[np.float64],
    predicted: NDArray[np.float64],
) -> dict[str, float]:
    """Metrics of predictions [n, width]: values in the target's own unit, or probabilities.

    ``truth`` is as ``Target.encode`` gives it for classification, and in the target's unit for regression.
    A metric that the samples do not define (r2 of one sample, auroc of one class) is NaN.
    """
    try:
        from scipy.stats import kendalltau
        from sklearn.metrics import r2_score
    except ImportError as error:
        raise MissingExtraError.of("scikit-learn", "learn", "measuring predictions") from error
    if target.task == "regression":
        y, p = truth[:, 0], predicted[:, 0]
        varied = len(y) > 1 and bool(np.ptp(y) > 0)
        tau: Any = kendalltau(y, p) if varied and np.ptp(p) > 0 else None
        return {
            "r2": float(r2_score(y, p)) if varied else UNDEFINED,
            "kendall_tau": UNDEFINED if tau is None else float(tau.statistic),
            "mae": float(np.abs(y - p).mean()),
        }
    if target.task == "multi-class":
        accuracy = float((truth.argmax(1) == predicted.argmax(1)).mean())
    else:
        accuracy = float(((predicted >= 0.5) == (truth >= 0.5)).mean())
    return {
        "accuracy": accuracy,
        "auroc": mean_auroc(truth, predicted),
        "brier": float(((predicted - truth) ** 2).mean()),
        "ece": calibration_error(truth, predicted),
    }


def why_undefined(
    metrics: Mapping[str, float], target: Target, truth: NDArray[np.float64], predicted: NDArray[np.float64]
) -> dict[str, str]:
    """For each of these metrics that is NaN, why that is so.

    >>> import numpy as np
    >>> truth = np.ones((3, 1))
    >>> target = Target("t", "binary", (False, True))
    >>> why_undefined(measure(target, truth, truth / 2), target, truth, truth / 2)
    {'auroc': 'all adapters are of one class'}
    """
    if target.is_classification:
        reason = "all adapters are of one class"
    elif len(truth) < 2:
        reason = "there is one adapter alone" if len(truth) else "there are no adapters"
    elif not np.ptp(truth) > 0:
        reason = "all adapters have the same value"
    else:
        reason = "the same is predicted of all adapters"
    return {name: reason for name, value in metrics.items() if np.isnan(value)}


BINS = 10


def calibration_error(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    """Expected calibration error: Σ_bins n_bin/n · |mean probability − share of truths|, the mean over columns.

    The ten bins of a column have equally many samples, in order of probability. With few samples it is above zero also
    for the true probabilities: by about √(2 p(1−p)/π n_bin).

    Source: Naeini, Cooper & Hauskrecht (2015); equal mass: Nixon et al. (arXiv 1904.01685).

    >>> import numpy as np
    >>> calibration_error(np.repeat([[0.0], [1.0]], 50, axis=0), np.full((100, 1), 0.5))
    0.5
    """
    errors: list[float] = []
    for p, y in zip(predicted.T, truth.T, strict=True):
        order = np.argsort(p, kind="stable")
        bins = [part for part in np.array_split(order, BINS) if len(part)]
        errors.append(sum(abs(float((p[part] - y[part]).sum())) for part in bins) / max(len(p), 1))
    return float(np.mean(errors))


def mean_auroc(truth: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """The mean over columns of the area under the ROC curve; columns with one class only do not count.

    >>> import numpy as np
    >>> mean_auroc(np.array([[0.0], [1.0], [1.0]]), np.array([[0.1], [0.4], [0.3]]))
    1.0
    """
    from sklearn.metrics import roc_auc_score

    areas = [
        float(roc_auc_score(truth[:, k], scores[:, k]))
        for k in range(truth.shape[1])
        if 0 < truth[:, k].sum() < len(truth)
    ]
    return float(np.mean(areas)) if areas else UNDEFINED
