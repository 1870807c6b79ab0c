"""Logistic regression on invariants of every site: for classes; numbers are for ``ridge``.

The features are standardised and weighted as ``ridge`` would weight them, K = Σ_g w_g Z_g Z_gᵀ / d_g with the weights
of closed-form leave-one-out. The solution lies in the span of the rows, so regression on the n coordinates V √Λ of
K = V Λ Vᵀ is the same as on all columns, and exact. One penalty for all classes, by cross-entropy on held-out groups
of samples; every class against the rest. A fitted one is coefficients: it predicts with NumPy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import MissingExtraError, PredictorError
from lorascope.predict.leave_one_out import RidgeSolution, blocks_of_groups, kernels_of, primal, search_weights
from lorascope.predict.model import (
    CalibratedOn,
    Inputs,
    Invariance,
    RankPolicy,
    Sample,
    Split,
    Structure,
    check_options,
)
from lorascope.predict.models.ridge import DEFAULT, FittedRidge, Ridge
from lorascope.predict.targets import Target

Matrix = NDArray[np.float64]

STRENGTHS = np.logspace(-2, 4, 7)
"""1 / penalty of those tried, for coordinates of mean square norm 1 per sample and a sum over samples."""

FOLDS = 3


@dataclass(frozen=True)
class Logistic:
    """Options: ``features``, names of the family; ``size`` of the sketches, ``seed`` of their projections."""

    features: tuple[str, ...] = DEFAULT
    size: int = 64
    seed: int = 0
    name: ClassVar[str] = "logistic"
    formula: ClassVar[str] = "sigmoid(Σ_sites Σ_g ⟨c_g, φ_g(ΔW)⟩ + c₀), penalty ‖c‖² by held-out groups"
    reference: ClassVar[str] = "lorascope; L2 logistic regression on invariants"
    invariance: ClassVar[Invariance] = "GL(r)"
    rank_policy: ClassVar[RankPolicy] = "any"
    calibrated_on: ClassVar[CalibratedOn] = "left-out"

    def __post_init__(self) -> None:
        check_options(self)

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """Each feature as [n, columns] in float64."""
        return Ridge(self.features, self.size, self.seed).inputs(samples, structure, advance)

    def fit(self, train: Split, validation: Split, target: Target, structure: Structure, *, seed: int) -> FittedRidge:
        """With SciPy and scikit-learn; ``validation`` and ``seed`` are not needed.

        Raises:
            PredictorError: for a regression.
        """
        if not target.is_classification:
            raise PredictorError(
                "logistic regression predicts classes",
                key=target.name,
                expected="a binary, multi-label or multi-class target",
                found=target.task,
                hint="fit ridge, which predicts numbers from the same features",
            )
        solution = fit_logistic(train.inputs, train.targets, sample_groups=train.groups)
        return FittedRidge(solution, train.targets)

    def restore(
        self,
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
        target: Target,
        structure: Structure,
    ) -> FittedRidge:
        """From the coefficients."""
        return Ridge(self.features, self.size, self.seed).restore(arrays, values, target, structure)


def fit_logistic(groups: Mapping[str, Matrix], Y: Matrix, *, sample_groups: tuple[str, ...]) -> RidgeSolution:
    """Logits of the columns of Y [n, t], each 0 or 1, as a linear function of groups of features, name → [n, d_g].

    ``left_out`` of the solution holds, for each sample, its logits by the fold that did not have it; ``penalty`` is
    relative to the mean diagonal of K. Cost: the search of ``fit_ridge``, then products of n × n with n × t.
    """
    columns, kernels = kernels_of(groups)
    weights = search_weights(kernels, Y - Y.mean(axis=0), 2, blocks_of_groups(sample_groups))
    K = np.add.reduce([weight * kernels[name] for name, weight in weights.items()])
    unit = float(np.trace(K)) / len(K) or 1.0  # constant features: nothing but the shares can be said
    values, vectors = np.linalg.eigh(K / unit)
    kept = values > 1e-12 * max(float(values[-1]), 1e-300)
    roots = np.sqrt(values[kept])
    coordinates = vectors[:, kept] * roots
    folds = _folds(sample_groups)
    errors: list[float] = []
    left_out: list[Matrix] = []
    for strength in STRENGTHS:
        logits = np.zeros_like(Y)
        for fold in np.unique(folds):
            inside = folds != fold
            slopes, intercept = _fit_columns(coordinates[inside], Y[inside], float(strength))
            logits[~inside] = coordinates[~inside] @ slopes + intercept
        left_out.append(logits)
        errors.append(float((np.logaddexp(0.0, logits) - Y * logits).mean()))
        if len(errors) > 2 and errors[-1] > errors[-2] > errors[-3]:
            break  # past its minimum the error only rises as the penalty falls, and those are the slow ones
    best = int(np.argmin(errors))
    strength = float(STRENGTHS[best])
    slopes, intercept = _fit_columns(coordinates, Y, strength)
    dual = (vectors[:, kept] / roots) @ slopes / unit
    coefficients, intercept = primal(groups, columns, weights, dual, intercept)
    return RidgeSolution(coefficients, intercept, weights, 1.0 / strength, left_out[best])


def _folds(sample_groups: tuple[str, ...]) -> NDArray[np.int64]:
    """The fold of each sample, groups whole; each sample alone where there are fewer groups than folds."""
    try:
        from sklearn.model_selection import GroupKFold
    except ImportError as error:
        raise MissingExtraError.of("scikit-learn", "learn", "fitting a logistic regression") from error
    names = np.asarray(sample_groups)
    if len(np.unique(names)) < FOLDS:
        names = np.arange(len(names))
    folds = np.zeros(len(names), np.int64)
    for fold, (_, held) in enumerate(GroupKFold(FOLDS).split(names, groups=names)):
        folds[held] = fold
    return folds


def _fit_columns(X: Matrix, Y: Matrix, strength: float) -> tuple[Matrix, Matrix]:
    """Slopes [d, t] and intercepts [t] that minimise Σ_i cross-entropy + ‖slopes‖² / (2 · strength).

    A column of one class gets the logit of its smoothed share and no slope. The columns do not meet, but one product
    serves them all. In the coordinates of K the Hessian is near diag(ΣX²/4 + 1/strength), at p = ½ equal to it; with
    that taken out the descent needs tens of steps.
    """
    from scipy.optimize import minimize

    shares = (Y.sum(axis=0) + 0.5) / (len(Y) + 1)
    slopes, intercepts = np.zeros((X.shape[1], Y.shape[1])), np.log(shares / (1 - shares))
    both = np.flatnonzero((Y.sum(axis=0) > 0) & (Y.sum(axis=0) < len(Y)))
    if not len(both):
        return slopes, intercepts
    y = Y[:, both]
    scales = 1.0 / np.sqrt(np.concatenate([(X * X).sum(axis=0) / 4 + 1 / strength, [len(X) / 4]]))[:, None]
    design = np.concatenate([X, np.ones((len(X), 1))], axis=1) * scales.T
    ridge = np.concatenate([scales[:-1] ** 2 / strength, [[0.0]]])

    def objective(flat: Matrix) -> tuple[float, Matrix]:
        u = flat.reshape(-1, len(both))
        logits = design @ u
        value = (np.logaddexp(0.0, logits) - y * logits).sum() + 0.5 * (ridge * u * u).sum()
        return float(value), (design.T @ (_sigmoid(logits) - y) + ridge * u).ravel()

    start = np.zeros((design.shape[1], len(both)))
    start[-1] = intercepts[both] / scales[-1]
    options = {"maxiter": 500, "maxfun": 1000, "gtol": 1e-4, "ftol": 0.0}
    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    w = found.x.reshape(start.shape) * scales
    slopes[:, both], intercepts[both] = w[:-1], w[-1]
    return slopes, intercepts


def _sigmoid(logits: Matrix) -> Matrix:
    return 0.5 * (1 + np.tanh(0.5 * logits))


MODEL = Logistic
