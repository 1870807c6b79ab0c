"""Hyperparameters alone: what the training recipe says, without a look at the weights. The baseline to beat.

Ridge on the declared hyperparameters, their logarithms where positive, and all products of two; words as indicators.
Seeds are identities and not used. It can only judge adapters whose hyperparameters are on record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import PredictorError
from lorascope.predict.leave_one_out import fit_ridge
from lorascope.predict.model import Inputs, Invariance, RankPolicy, Sample, Split, Structure
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

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """name → [n, 2]: the value and its logarithm."""
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
        return columns or {"none": np.zeros((len(rows), 2))}

    def fit(
        self, train: Split, validation: Split, target: Target, structure: Structure, *, seed: int
    ) -> FittedHyperparameters:
        """Closed form."""
        words = {name: sorted(set(X.tolist())) for name, X in train.inputs.items() if X.dtype.kind == "U"}
        coded = _coded(train.inputs, words)
        mean, spread = coded.mean(0), coded.std(0)
        scale = np.stack([mean, np.where(spread > 1e-9 * (1 + np.abs(mean)), spread, np.inf)])
        solution = fit_ridge({"products": _products(coded, scale)}, train.targets)
        return FittedHyperparameters(FittedRidge(solution, train.targets), words, scale)

    def restore(
        self,
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
        target: Target,
        structure: Structure,
    ) -> FittedHyperparameters:
        """From the coefficients."""
        ridge = Ridge().restore(arrays, values, target, structure)
        return FittedHyperparameters(ridge, values["words"], arrays["scale"])


class FittedHyperparameters:
    """A ridge on products of standardised hyperparameters."""

    def __init__(self, ridge: FittedRidge, words: Mapping[str, list[str]], scale: NDArray[np.float64]) -> None:
        self._ridge = ridge
        self._words = words
        self._scale = scale
        self.calibration = ridge.calibration

    def scores(self, inputs: Inputs) -> NDArray[np.float64]:
        """[n, width]."""
        return self._ridge.scores({"products": _products(_coded(inputs, self._words), self._scale)})

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The ridge, the words known and the statistics of the columns."""
        arrays, values = self._ridge.state()
        return {**arrays, "scale": self._scale}, {**values, "words": dict(self._words)}


def _column(values: list[Any]) -> NDArray[Any]:
    """[n, 2] for numbers: the value and its logarithm (0 where some are negative); [n] for words."""
    if not all(isinstance(value, bool | int | float) for value in values):
        return np.asarray([str(value) for value in values])
    numbers = np.asarray(values, np.float64)
    logarithms = np.log(np.maximum(numbers, 1e-12)) if (numbers >= 0).all() else np.zeros_like(numbers)
    return np.stack([numbers, logarithms], axis=1)


def _coded(inputs: Inputs, words: Mapping[str, list[str]]) -> NDArray[np.float64]:
    """All columns as numbers, a word as one indicator for each word known."""
    columns = [
        (X[:, None] == np.asarray(words[name])).astype(np.float64) if name in words else X for name, X in inputs.items()
    ]
    return np.concatenate(columns, axis=1)


def _products(coded: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    Z = (coded - scale[0]) / scale[1]
    pairs = [Z[:, i] * Z[:, j] for i, j in combinations_with_replacement(range(Z.shape[1]), 2)]
    return np.concatenate([Z, np.stack(pairs, axis=1)], axis=1)


MODEL = Hyperparameters
