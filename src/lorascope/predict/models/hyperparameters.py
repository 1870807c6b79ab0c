"""Hyperparameters alone: what the training recipe says, without a look at the weights. The baseline to beat.

Ridge on the declared hyperparameters, their logarithms where positive, and all products of two; words as indicators.
Seeds are identities and not used. It can only judge adapters whose hyperparameters are on record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import PredictorError
from lorascope.predict.leave_one_out import fit_ridge
from lorascope.predict.model import CalibratedOn, Inputs, Invariance, RankPolicy, Sample, Split, Structure
from lorascope.predict.models.ridge import FittedRidge, Ridge
from lorascope.predict.targets import Target


@dataclass(frozen=True)
class Hyperparameters:
    """No options."""

    name: ClassVar[str] = "hyperparameters"
    formula: ClassVar[str] = "ridge on (x, log x) of the declared hyperparameters and products of two"
    reference: ClassVar[str] = "the honest baseline of any weight-space result"
    invariance: ClassVar[Invariance] = "blind"
    rank_policy: ClassVar[RankPolicy] = "any"
    calibrated_on: ClassVar[CalibratedOn] = "left-out"

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """name → [n], numbers or words."""
        rows = [sample.hyperparameters for sample in samples]
        names = [name for name in structure.hyperparameters if not name.endswith("seed")]
        columns: Inputs = {}
        for name in names:
            if any(name not in row or row[name] is None for row in rows):
                raise PredictorError(
                    "the model `hyperparameters` judges by the recorded hyperparameters, which an adapter file "
                    "does not hold",
                    key=name,
                    hint="evaluate it on a zoo, or fit a model that reads the weights, such as ridge",
                )
            columns[name] = _column([row[name] for row in rows])
        if advance is not None:
            advance(len(rows))
        return columns or {"none": np.zeros(len(rows))}

    def fit(
        self, train: Split, validation: Split, target: Target, structure: Structure, *, seed: int
    ) -> FittedHyperparameters:
        """Closed form."""
        words = {name: sorted(set(X.tolist())) for name, X in train.inputs.items() if X.dtype.kind == "U"}
        positive = [name for name, X in train.inputs.items() if name not in words and bool((X > 0).all())]
        coded = _coded(train.inputs, words, positive)
        mean, spread = coded.mean(0), coded.std(0)
        varies = spread > 1e-9 * (1 + np.abs(mean))
        scale = np.stack([mean, np.where(varies, 1 / np.where(varies, spread, 1.0), 0.0)])
        groups = {"products": _products(coded, scale)}
        solution = fit_ridge(groups, train.targets, sample_groups=train.groups)
        return FittedHyperparameters(FittedRidge(solution, train.targets), words, positive, scale)

    def restore(
        self,
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
        target: Target,
        structure: Structure,
    ) -> FittedHyperparameters:
        """From the coefficients."""
        ridge = Ridge().restore(arrays, values, target, structure)
        return FittedHyperparameters(ridge, values["words"], values["positive"], arrays["scale"])


class FittedHyperparameters:
    """A ridge on products of standardised hyperparameters."""

    def __init__(
        self,
        ridge: FittedRidge,
        words: Mapping[str, list[str]],
        positive: Sequence[str],
        scale: NDArray[np.float64],
    ) -> None:
        self._ridge = ridge
        self._words = words
        self._positive = positive
        self._scale = scale
        self.calibration = ridge.calibration

    def scores(self, inputs: Inputs) -> NDArray[np.float64]:
        """[n, width]."""
        coded = _coded(inputs, self._words, self._positive)
        return self._ridge.scores({"products": _products(coded, self._scale)})

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The ridge, the words known and the statistics of the columns."""
        arrays, values = self._ridge.state()
        return {**arrays, "scale": self._scale}, {
            **values,
            "words": dict(self._words),
            "positive": list(self._positive),
        }


def _column(values: list[Any]) -> NDArray[Any]:
    """[n] numbers, or [n] words where one is no number."""
    if all(isinstance(value, bool | int | float) for value in values):
        return np.asarray(values, np.float64)
    return np.asarray([str(value) for value in values])


def _coded(inputs: Inputs, words: Mapping[str, list[str]], positive: Sequence[str]) -> NDArray[np.float64]:
    """All columns as numbers: a word as one indicator for each word known, a positive number with its logarithm."""
    columns: list[NDArray[np.float64]] = []
    for name, X in inputs.items():
        if name in words:
            columns.append((X[:, None] == np.asarray(words[name])).astype(np.float64))
        elif X.dtype.kind == "U":
            raise PredictorError("a hyperparameter that was a number is a word here", key=name, found=X[0])
        else:
            columns.append(X[:, None])
            if name in positive:
                columns.append(np.log(np.maximum(X, 1e-300))[:, None])
    return np.concatenate(columns, axis=1)


def _products(coded: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    Z = (coded - scale[0]) * scale[1]
    pairs = [Z[:, i] * Z[:, j] for i, j in combinations_with_replacement(range(Z.shape[1]), 2)]
    return np.concatenate([Z, np.stack(pairs, axis=1)], axis=1)


MODEL = Hyperparameters
