"""What a table of the bench asks: one target of one zoo, which adapters teach it and which test it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import PredictorError
from lorascope.predict.dataset import Dataset
from lorascope.predict.fitting import MINIMUM
from lorascope.predict.model import Structure
from lorascope.predict.predictor import usable
from lorascope.predict.targets import Target, is_missing

Indices = NDArray[np.int64]

QUANTILE = 0.7
"""Below this quantile of a hyperparameter the model of ``unseen-range`` learns, above it is tested."""


@dataclass(frozen=True, eq=False)
class Question:
    """A target with its adapters.

    Args:
        dataset: of the zoo.
        target: what is asked.
        structure: of the adapters that teach.
        taught: the places of those that may be learnt from, train and validation together.
        encoded: [taught, width], their targets.
        tested: the places of those that test.
        unlabelled: adapters of the three splits that have no value of the target.
    """

    dataset: Dataset
    target: Target
    structure: Structure
    taught: Indices
    encoded: NDArray[np.float64]
    tested: Indices
    unlabelled: int

    @classmethod
    def of(cls, dataset: Dataset, name: str, structures: Structures) -> Question:
        """The question that a label column poses.

        Raises:
            PredictorError: where there is no such label, it poses no task, or too few adapters have a value of it.
        """
        target, taught, tested = _posed(dataset, name)
        values = dataset.values(name)
        asked = len(dataset.where("train", "validation", "test"))
        encoded = target.encode([values[i] for i in taught])
        unlabelled = asked - len(taught) - len(tested)
        return cls(dataset, target, structures.of(taught), taught, encoded, tested, unlabelled)

    def names(self, indices: Indices) -> tuple[str, ...]:
        """The groups of these adapters."""
        return tuple(self.dataset.groups[i] for i in indices)

    def shuffled(self, seed: int) -> Question:
        """The same question with the taught labels permuted among groups: nothing is left to be learnt.

        Each group gets the labels of another, in order and over again where that one is smaller. What a model still
        scores on the test adapters, whose labels stay, has leaked from somewhere.
        """
        groups = self.names(self.taught)
        places: dict[str, list[int]] = {}
        for place, group in enumerate(groups):
            places.setdefault(group, []).append(place)
        order = sorted(places)
        permuted = np.random.default_rng(seed).permutation(len(order))
        source = np.zeros(len(groups), np.int64)
        for group, other in zip(order, permuted, strict=True):
            theirs = places[order[int(other)]]
            for turn, place in enumerate(places[group]):
                source[place] = theirs[turn % len(theirs)]
        return replace(self, encoded=self.encoded[source])

    def beyond(self, hyperparameter: str, structures: Structures) -> tuple[Question, str]:
        """Taught by the adapters below a quantile of a hyperparameter and tested by those above it; and that in words.

        The threshold is of the adapters that teach. Where more than a third of them have the largest value, that value
        alone is above.

        Raises:
            PredictorError: where too few adapters are left on a side.
        """
        values = np.asarray([float(sample.hyperparameters[hyperparameter]) for sample in self.dataset.samples])
        threshold = float(np.quantile(values[self.taught], QUANTILE, method="lower"))
        above = values > threshold
        sign = ">"
        if not above[self.taught].any():
            above, sign = values >= threshold, "≥"
        said = f"{hyperparameter} {sign} {threshold:.4g}"
        kept = ~above[self.taught]
        tested = self.tested[above[self.tested]]
        if kept.sum() < MINIMUM or len(tested) < 2:
            raise PredictorError(
                "too few adapters on a side of the range",
                key=hyperparameter,
                expected=f"{MINIMUM} to learn from below, 2 to test above",
                found=f"{int(kept.sum())} and {len(tested)} by {said}",
            )
        taught = self.taught[kept]
        known = [self.dataset.values(self.target.name)[i] for i in taught]
        # classes stay, so that the two members are measured on the same ones
        target = self.target if self.target.is_classification else Target.of(self.target.name, known, "regression")
        narrowed = replace(
            self,
            target=target,
            structure=structures.of(taught),
            taught=taught,
            encoded=target.encode(known),
            tested=tested,
        )
        return narrowed, said


def _posed(dataset: Dataset, name: str) -> tuple[Target, Indices, Indices]:
    """The target, the places of those that teach it and of those that test it; no adapter is read."""
    values = dataset.values(name)
    offered = dataset.where("train", "validation")
    taught = np.asarray([i for i in offered if not is_missing(values[i])], np.int64)
    if len(taught) < MINIMUM:
        raise PredictorError(
            "too few adapters to learn from",
            key=name,
            expected=f"at least {MINIMUM} with a label outside the test split",
            found=len(taught),
        )
    return Target.of(name, [values[i] for i in taught]), taught, usable(values, dataset.where("test"))


class Structures:
    """The structures of parts of a dataset, each worked out once: it takes a look at every adapter."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._known: dict[bytes, Structure] = {}

    def of(self, indices: Indices) -> Structure:
        """As ``Dataset.structure``."""
        key = indices.tobytes()
        if key not in self._known:
            self._known[key] = self._dataset.structure(indices)
        return self._known[key]


def askable(dataset: Dataset) -> tuple[list[str], dict[str, str]]:
    """The labels that pose a task, and for the others why not."""
    good: list[str] = []
    bad: dict[str, str] = {}
    for name in dataset.labels:
        try:
            _posed(dataset, name)
            good.append(name)
        except PredictorError as error:
            bad[name] = str(error).splitlines()[0]
    return good, bad


def range_hyperparameter(dataset: Dataset, name: str | None = None) -> str | None:
    """The hyperparameter whose range ``unseen-range`` cuts: ``learning_rate``, else the first number that varies.

    Seeds are no quantities. None where nothing varies.

    Raises:
        PredictorError: where ``name`` is asked for and is no number that varies.
    """
    varying = [one for one in dataset.hyperparameters if not one.endswith("seed") and _varies(dataset, one)]
    if name is not None and name not in varying:
        raise PredictorError(
            "no such hyperparameter, or not a number that varies",
            key=name,
            expected=f"one of {', '.join(varying) or 'none: the zoo has no such hyperparameter'}",
        )
    if name is not None:
        return name
    return "learning_rate" if "learning_rate" in varying else next(iter(varying), None)


def _varies(dataset: Dataset, name: str) -> bool:
    values = [sample.hyperparameters.get(name) for sample in dataset.samples]
    is_number = all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in values)
    return is_number and len(set(values)) > 1


def fingerprint(dataset: Dataset) -> str:
    """A hash of all that a result on this dataset depends on: adapters, labels, hyperparameters, groups and splits."""
    lines = [dataset.digest]
    for sample, one, group, split in zip(dataset.samples, dataset.ids, dataset.groups, dataset.splits, strict=True):
        lines.append(f"{one} {group} {split} {sorted(_plain(sample.hyperparameters).items())}")
    return blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def _plain(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: repr(value) for name, value in values.items()}
