"""Conformal prediction for samples that come in groups: quantiles and p-values that hold without a model.

    quantile(level)   the smallest q with  Σ_g 1/(G+1) · #{i ∈ g: v_i ≤ q} / n_g  ≥  level
    p(v)              (1 + Σ_g #{i ∈ g: v_i ≥ v} / n_g) / (G+1)

v_i are values of left-out samples (absolute residuals, scores of strangeness), g the G groups, n_g their sizes. Every
group counts once however many members it has, and the group to come counts once, at infinity. If groups are
exchangeable and the new sample is any member of a new group, then v_new ≤ quantile(level) with probability level or
more, and p(v_new) ≤ α with probability α or less. Where every group has one member this is split conformal prediction.

Source: Vovk, Gammerman & Shafer (2005); Lee, Barber & Willett (arXiv 2306.06342), hierarchical conformal prediction.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import PredictorError


@dataclass(frozen=True, eq=False)
class Conformal:
    """Values of left-out samples, ascending [n], and the share of the whole that each counts for [n].

    The shares sum to G/(G+1).
    """

    values: NDArray[np.float64]
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, values: Sequence[float] | NDArray[np.float64], groups: Sequence[Any] | None = None) -> Conformal:
        """From values in any order and the group of each; by default each is a group of its own.

        >>> Conformal.of([3.0, 1.0, 2.0], ["a", "b", "a"]).shares.round(3).tolist()
        [0.333, 0.167, 0.167]
        """
        given = np.asarray(values, np.float64)
        names = range(len(given)) if groups is None else groups
        sizes = Counter(names)
        shares = np.asarray([1.0 / (sizes[name] * (len(sizes) + 1)) for name in names], np.float64)
        order = np.argsort(given, kind="stable")
        return cls(given[order], shares[order])

    def quantile(self, level: float) -> float:
        """The value that a new one does not exceed with probability ``level``; infinite where samples are too few.

        >>> Conformal.of(range(9)).quantile(0.9), Conformal.of(range(8)).quantile(0.9)
        (8.0, inf)
        """
        reached = np.cumsum(self.shares) >= check_level(level) - 1e-12
        return float(self.values[int(np.argmax(reached))]) if reached.any() else math.inf

    def p_values(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """[m]: how probable values as large as these are among new samples of the same kind.

        Down to 1/(G+1) this is exact. Beyond the largest of the n values it goes on as the exponential tail
        whose mean excess is that of the largest tenth (eight values at least): an extrapolation, which decides only
        where a threshold lies below 1/(G+1).

        >>> Conformal.of(range(99)).p_values(np.array([0.0, 98.0, 1e9])).round(4).tolist()
        [1.0, 0.02, 0.0]
        """
        n = len(self.values)
        if not n:
            return np.ones(len(values))
        rest = 1.0 - float(self.shares.sum())
        above = np.append(np.cumsum(self.shares[::-1])[::-1], 0.0)
        exact = rest + above[np.searchsorted(self.values, values, side="left")]
        top = self.values[-max(min(8, n), n // 10) :]
        excess = max(float((top - top[0]).mean()), 1e-9)
        beyond = np.maximum(values - self.values[-1], 0.0) / excess
        return np.minimum(exact * np.exp(-beyond), 1.0)


def check_level(level: float) -> float:
    """A share that intervals can be asked to hold.

    Raises:
        PredictorError: where it is not strictly between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise PredictorError("the level of an interval is a share", expected="a number between 0 and 1", found=level)
    return level
