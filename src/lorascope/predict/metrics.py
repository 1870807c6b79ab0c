"""How good predictions are, each metric under its true name.

regression     r2, kendall_tau (τ-b), mae, and the share of truths inside the 90 % intervals
binary         accuracy at probability ½, auroc, brier
multi-label    the same three, each the mean over labels that take both values among the samples
multi-class    accuracy, auroc (one against the rest, mean over classes that occur), brier (mean over classes)
"""

from __future__ import annotations

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
    half_width: float | None = None,
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
        result = {
            "r2": float(r2_score(y, p)) if varied else UNDEFINED,
            "kendall_tau": UNDEFINED if tau is None else float(tau.statistic),
            "mae": float(np.abs(y - p).mean()),
        }
        if half_width is not None:
            result["coverage_90"] = float((np.abs(y - p) <= half_width).mean())
        return result
    if target.task == "multi-class":
        accuracy = float((truth.argmax(1) == predicted.argmax(1)).mean())
    else:
        accuracy = float(((predicted >= 0.5) == (truth >= 0.5)).mean())
    return {
        "accuracy": accuracy,
        "auroc": mean_auroc(truth, predicted),
        "brier": float(((predicted - truth) ** 2).mean()),
    }


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
