"""What measuring a predictor on adapters with known values finds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SCHEMA_VERSION = 2
"""Version 1 said neither from how many adapters the predictor would abstain nor why a metric is undefined."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics: name → {mean, sd} over members; ``n`` samples, ``seen`` of them in the groups of training.

    ``coverage_90`` and the mean ``width_90`` (``set_size_90``) are of the intervals (sets) that the predictor issues,
    which are those of all members together: they have no spread over members. All metrics are over all samples, those
    from which the predictor would abstain included.

    Args:
        target, task, model: what was predicted, by what.
        metrics: NaN where undefined.
        n, seen: counts.
        undefined: metric → why it is undefined.
        abstained: samples so unlike those of training that nothing should be said of them; None where that was not
            judged: by a model that does not see weights, or from inputs alone.
    """

    target: str
    task: str
    model: str
    metrics: Mapping[str, Mapping[str, float]]
    n: int
    seen: int
    undefined: Mapping[str, str] = field(default_factory=dict[str, str])
    abstained: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The evaluation as a JSON object."""
        return {
            "schema_version": SCHEMA_VERSION,
            "target": self.target,
            "task": self.task,
            "model": self.model,
            "metrics": {name: dict(value) for name, value in self.metrics.items()},
            "undefined": dict(self.undefined),
            "n": self.n,
            "seen": self.seen,
            "abstained": self.abstained,
        }


def mean_and_sd(values: Sequence[float]) -> dict[str, float]:
    """Over members; the deviation with n − 1, NaN of one.

    >>> mean_and_sd([1.0, 3.0])
    {'mean': 2.0, 'sd': 1.4142135623730951}
    """
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return {"mean": float(np.mean(values)), "sd": sd}
