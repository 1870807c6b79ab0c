"""Weights of a merge that make a loss least, without gradients: what LoraHub does with a few examples of a new task.

    argmin_w  loss(merge(w)) + l1 · Σ |w_i| / n       −bound ≤ w_i ≤ bound, from w = 0

The loss is any function of the merged adapter. Published with nevergrad; here with SciPy's COBYLA, which puts linear
models through n + 1 points and needs no more evaluations than are allowed.

Source: Huang et al. (2023), LoraHub, arXiv 2307.13269: bound 1.5, l1 0.05, 40 evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.errors import LorascopeError, MissingExtraError
from lorascope.merge.merging import merge
from lorascope.merge.method import Method


@dataclass(frozen=True, eq=False)
class LearnedWeights:
    """``weights`` [n]: the best that were tried. ``loss``: theirs, without the penalty. ``first``: that of w = 0."""

    weights: NDArray[np.float64]
    loss: float
    first: float
    evaluations: int


def learn_weights(
    adapters: Sequence[Adapter],
    loss: Callable[[Adapter], float],
    *,
    method: str | Method = "linear",
    evaluations: int = 40,
    bound: float = 1.5,
    l1: float = 0.05,
    advance: Callable[[int], Any] | None = None,
    **options: Any,
) -> LearnedWeights:
    """Search for the weights with the least loss.

    Args:
        adapters: n, of one base.
        loss: of a merged adapter, a finite number, the lower the better. It is called ``evaluations`` times at most.
        method: with a meaning for any weights between −bound and bound, 0 included.
        evaluations: merges and calls of ``loss``, more than n.
        bound: of each weight.
        l1: of the penalty.
        advance: called with 1 after each evaluation.
        options: of ``merge``.

    Raises:
        LorascopeError: where the loss is not a finite number, or there are too few evaluations.
        MissingExtraError: without SciPy.

    >>> from lorascope.adapter import LowRank
    >>> import pytest; scipy = pytest.importorskip("scipy")
    >>> wanted = np.diag([0.5, -1.0])
    >>> parts = [Adapter({"q": LowRank(np.eye(2)[:, [k]], np.eye(2)[[k]])}) for k in (0, 1)]
    >>> found = learn_weights(parts, lambda one: float(np.abs(one["q"].delta_weight() - wanted).max()), evaluations=80)
    >>> np.abs(found.weights - [0.5, -1.0]).max() < 0.1, found.loss < found.first
    (np.True_, True)
    """
    try:
        from scipy.optimize import minimize
    except ModuleNotFoundError as error:
        raise MissingExtraError.of("scipy", "learn", "learning the weights of a merge") from error
    count = len(adapters)
    if evaluations <= count + 1:
        raise LorascopeError(
            "too few evaluations to learn from",
            key="evaluations",
            expected=f"more than {count + 1} for {count} adapters",
            found=evaluations,
        )
    tried: list[tuple[float, float, NDArray[np.float64]]] = []

    def objective(weights: NDArray[np.float64]) -> float:
        inside = np.clip(weights, -bound, bound)
        if len(tried) >= evaluations:
            return min(total for total, _, _ in tried)
        value = float(loss(merge(adapters, method, weights=cast("list[float]", inside.tolist()), **options).adapter))
        if not math.isfinite(value):
            raise LorascopeError("the loss is not a finite number", expected="a float", found=value)
        tried.append((value + l1 * float(np.abs(inside).mean()), value, inside))
        if advance is not None:
            advance(1)
        return tried[-1][0]

    minimize(
        objective,
        np.zeros(count),
        method="COBYLA",
        bounds=[(-bound, bound)] * count,
        options={"rhobeg": bound / 3, "maxiter": evaluations, "tol": 1e-3},
    )
    _, best, weights = min(tried, key=lambda one: one[0])
    return LearnedWeights(weights, best, tried[0][1], len(tried))
