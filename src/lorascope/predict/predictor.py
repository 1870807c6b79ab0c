"""A predictor: fitted members with their calibrations, what they were made from, and what they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.errors import PredictorError
from lorascope.predict.calibration import LEVEL, Calibration
from lorascope.predict.metrics import measure
from lorascope.predict.model import FittedModel, Inputs, Model, Sample, Structure
from lorascope.predict.targets import Target, is_missing


class Member(NamedTuple):
    """One fitted model of a predictor."""

    seed: int
    fitted: FittedModel
    calibration: Calibration


@dataclass(frozen=True)
class Prediction:
    """What a predictor says of one adapter.

    Args:
        value: a number, a class, or the list of labels held more likely than not.
        interval: for regression, where the truth lies with probability ``LEVEL``; None if it was never
            calibrated on enough samples.
        probabilities: for classification, class → probability.
        sd: the standard deviation over members, of the value or the largest of a probability; None for one member.
    """

    target: str
    task: str
    model: str
    value: Any
    interval: tuple[float, float] | None
    probabilities: Mapping[str, float] | None
    sd: float | None
    path: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The prediction as a JSON object."""
        return {
            "schema_version": 1,
            "path": self.path,
            "target": self.target,
            "task": self.task,
            "model": self.model,
            "prediction": self.value,
            "interval": None if self.interval is None else list(self.interval),
            "level": LEVEL,
            "probabilities": None if self.probabilities is None else dict(self.probabilities),
            "sd": self.sd,
        }


@dataclass(frozen=True)
class Evaluation:
    """Metrics over members: name → {mean, sd}; ``n`` samples, ``seen`` of them in the groups of training."""

    target: str
    task: str
    model: str
    metrics: Mapping[str, Mapping[str, float]]
    n: int
    seen: int

    def as_dict(self) -> dict[str, Any]:
        """The evaluation as a JSON object."""
        return {
            "schema_version": 1,
            "target": self.target,
            "task": self.task,
            "model": self.model,
            "metrics": {name: dict(value) for name, value in self.metrics.items()},
            "n": self.n,
            "seen": self.seen,
        }


@dataclass(frozen=True, eq=False)
class Predictor:
    """Adapters of one structure to one target.

    Args:
        target, model, structure: what is predicted, by what, from which adapters.
        members: one per seed; they vote by the mean.
        groups: hashes of the groups that were seen in fitting.
        facts: hashes of the data and the split, versions, metrics: for the record.
    """

    target: Target
    model: Model
    structure: Structure
    members: tuple[Member, ...]
    groups: frozenset[int] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def load(cls, path: str | Path) -> Predictor:
        """Read a saved predictor; nothing in it is executed."""
        from lorascope.predict.store import load

        return load(Path(path))

    def save(self, path: str | Path) -> None:
        """Write the predictor as a folder, by a rename of the finished whole."""
        from lorascope.predict.store import save

        save(self, Path(path))

    def predict(
        self, adapters: Iterable[Adapter | Sample], advance: Callable[[int], Any] | None = None
    ) -> list[Prediction]:
        """What the members say of each adapter, in order.

        Raises:
            PredictorError: for an adapter of another structure.
        """
        samples = [adapter if isinstance(adapter, Sample) else _sample(adapter) for adapter in adapters]
        if not samples:
            return []
        inputs = self.model.inputs(samples, self.structure, advance)
        by_member = np.stack([self._values(member, inputs) for member in self.members])
        mean = by_member.mean(axis=0)
        sd = by_member.std(axis=0, ddof=1) if len(self.members) > 1 else None
        return [self._prediction(mean[i], None if sd is None else float(sd[i].max())) for i in range(len(samples))]

    def scores(self, inputs: Inputs) -> NDArray[np.float64]:
        """Uncalibrated scores of every member, [members, n, width]."""
        return np.stack([member.fitted.scores(inputs) for member in self.members])

    def evaluate(self, inputs: Inputs, values: Sequence[Any], groups: Sequence[str] = ()) -> Evaluation:
        """Metrics of every member on samples with known values; mean and spread over the members.

        The spread is the standard deviation with n − 1, NaN for a single member.
        """
        encoded = self.target.encode(values, ignore_unknown=True)
        truth = encoded * self.target.spread + self.target.mean if not self.target.is_classification else encoded
        measured = [
            measure(self.target, truth, self._values(member, inputs), member.calibration.half_width)
            for member in self.members
        ]
        metrics = {name: _mean_and_sd([one[name] for one in measured]) for name in measured[0]}
        seen = sum(group_hash(group) in self.groups for group in groups)
        return Evaluation(self.target.name, self.target.task, self.model.name, metrics, len(values), seen)

    def _values(self, member: Member, inputs: Inputs) -> NDArray[np.float64]:
        return member.calibration.predict(self.target, member.fitted.scores(inputs))

    def _prediction(self, mean: NDArray[np.float64], sd: float | None) -> Prediction:
        target = self.target
        facts = {"target": target.name, "task": target.task, "model": self.model.name, "sd": sd}
        if not target.is_classification:
            half = float(np.mean([member.calibration.half_width for member in self.members]))
            value = float(mean[0])
            interval = (value - half, value + half) if math.isfinite(half) else None
            return Prediction(value=value, interval=interval, probabilities=None, **facts)
        shares = [1 - float(mean[0]), float(mean[0])] if target.task == "binary" else [float(p) for p in mean]
        value: Any = target.classes[int(np.argmax(shares))]
        if target.task == "multi-label":
            value = [label for label, share in zip(target.classes, shares, strict=True) if share >= 0.5]
        probabilities = {str(label): share for label, share in zip(target.classes, shares, strict=True)}
        return Prediction(value=value, interval=None, probabilities=probabilities, **facts)


def _sample(adapter: Adapter) -> Sample:
    return Sample(lambda: adapter, {})


def _mean_and_sd(values: Sequence[float]) -> dict[str, float]:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return {"mean": float(np.mean(values)), "sd": sd}


def group_hash(group: str) -> int:
    """63 bits of a group's name: enough to tell whether an adapter was seen in training."""
    return int.from_bytes(blake2b(group.encode(), digest_size=8).digest(), "little") >> 1


def usable(values: Sequence[Any], indices: Iterable[int]) -> NDArray[np.int64]:
    """The indices whose value is known: neither null nor a number that is not finite.

    Raises:
        PredictorError: where none is.
    """
    asked = list(indices)
    known = np.asarray([i for i in asked if not is_missing(values[i])], np.int64)
    if not len(known):
        raise PredictorError(
            "no adapter of this split has a value of the target",
            found=f"{len(asked)} adapters in the split",
            hint="`lorascope zoo info` counts splits and missing values, `lorascope zoo split` splits anew",
        )
    return known
