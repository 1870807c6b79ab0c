"""A predictor: fitted members with their calibrations, what they were made from, and what they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.errors import PredictorError
from lorascope.features import featurise
from lorascope.features.projection import LARGE
from lorascope.predict.blocks import checked
from lorascope.predict.calibration import Calibration
from lorascope.predict.conformal import Conformal, check_level
from lorascope.predict.evaluation import Evaluation, mean_and_sd
from lorascope.predict.explanation import TOP, Contributions, Explains, Explanation, mean_of
from lorascope.predict.familiarity import Familiarity, Judgement
from lorascope.predict.intervals import LEVEL, gives_spreads, is_in_set, measure_intervals, scores_and_spreads
from lorascope.predict.metrics import measure, why_undefined
from lorascope.predict.model import FittedModel, Inputs, Model, Sample, Structure
from lorascope.predict.prediction import Prediction
from lorascope.predict.targets import Target, is_missing
from lorascope.symmetry import thin_svd

AT_ONCE = 256
"""Adapters whose inputs are in memory together, at most."""

NUMBERS_AT_ONCE = 1 << 25
"""Numbers of these inputs, 256 MB in float64, as far as the rank of training says: of a large base one adapter has
millions."""


class Member(NamedTuple):
    """One fitted model of a predictor."""

    seed: int
    fitted: FittedModel
    calibration: Calibration


@dataclass(frozen=True, eq=False)
class Predictor:
    """Adapters of one structure to one target.

    Args:
        target, model, structure: what is predicted, by what, from which adapters.
        members: one per seed; they vote by the mean.
        groups: hashes of the groups that were seen in fitting.
        facts: hashes of the data and the split, versions, metrics: for the record.
        intervals: left-out residuals, for intervals and sets of any level.
        familiarity: what training adapters look like.
    """

    target: Target
    model: Model
    structure: Structure
    members: tuple[Member, ...]
    groups: frozenset[int] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    intervals: Conformal | None = None
    familiarity: Familiarity | None = None

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
        self,
        adapters: Iterable[Adapter | Sample],
        advance: Callable[[int], Any] | None = None,
        *,
        level: float = LEVEL,
    ) -> list[Prediction]:
        """What the members say of each adapter, in order; ``level`` is that of intervals and sets.

        Inputs are held for ``AT_ONCE`` adapters at a time, or as many as have ``NUMBERS_AT_ONCE``, so that memory does
        not grow with their number.

        Raises:
            PredictorError: for an adapter of another structure, or a level that is no share.
        """
        check_level(level)
        iterator = (adapter if isinstance(adapter, Sample) else _sample(adapter) for adapter in adapters)
        said: list[Prediction] = []
        while samples := list(islice(iterator, _at_once(self.structure))):
            said += self._said(samples, advance, level)
        return said

    def _said(self, samples: Sequence[Sample], advance: Callable[[int], Any] | None, level: float) -> list[Prediction]:
        inputs, judgements = self._inputs(samples, advance)
        by_member, spreads = self._values_and_spreads(inputs)
        mean = by_member.mean(axis=0)
        sd = by_member.std(axis=0, ddof=1) if len(self.members) > 1 else None
        q = math.inf if self.intervals is None else self.intervals.quantile(level)
        said: list[Prediction] = []
        for i, judgement in enumerate(judgements):
            prediction = self._prediction(
                mean[i], None if sd is None else float(sd[i].max()), q, float(spreads[i]), level
            )
            if judgement is not None:
                prediction = replace(
                    prediction,
                    unfamiliarity=judgement.unfamiliarity,
                    p_value=judgement.p_value,
                    abstained=judgement.is_strange,
                    reason=judgement.reason if judgement.is_strange else None,
                )
            said.append(prediction)
        return said

    def _inputs(
        self, samples: Sequence[Sample], advance: Callable[[int], Any] | None
    ) -> tuple[Inputs, Sequence[Judgement | None]]:
        """The model's inputs and the judgements of familiarity, from one decomposition where both are features."""
        if self.familiarity is None:
            return self.model.inputs(samples, self.structure, advance), [None] * len(samples)
        if getattr(self.model, "gives_tokens", False):
            inputs = self.model.inputs(samples, self.structure, advance)
            return inputs, self.familiarity.judge_tokens(inputs)
        members = getattr(self.model, "members", None)
        if members is None:
            return self.model.inputs(samples, self.structure, advance), self.familiarity.judge(samples)
        statistics = self.familiarity.statistics
        adapters = (checked(sample.read(), self.structure) for sample in samples)
        columns = featurise(adapters, [*members(), statistics], sites=list(self.structure.sites), advance=advance)
        return columns, self.familiarity.judge_statistics(columns.pop(statistics.name))

    def explain(self, adapters: Iterable[Adapter | Sample], *, label: Any = None) -> list[Explanation]:
        """What the value for each adapter comes from, in order.

        Args:
            adapters: as for ``predict``.
            label: the class to explain; by default the likeliest, of two classes the second.

        Raises:
            PredictorError: for a model that cannot say, an adapter of another structure, or an unknown label.
        """
        samples = [adapter if isinstance(adapter, Sample) else _sample(adapter) for adapter in adapters]
        return [self._explanation(sample.read(), label) for sample in samples]

    def _explanation(self, adapter: Adapter, label: Any) -> Explanation:
        model, target = self.model, self.target
        if not isinstance(model, Explains) or model.invariance != "GL(r)":
            raise PredictorError(
                "the model cannot say what its values come from",
                key=model.name,
                expected="an invariant model, such as ridge or glnet",
                found="a model that never sees the weights"
                if model.invariance == "blind"
                else "one whose values change with the gauge: what an entry of B or A adds has no meaning"
                if model.invariance == "none"
                else "a model without contributions",
            )
        inputs = model.inputs([_sample(adapter)], self.structure)
        values = np.mean([self._values(member, inputs) for member in self.members], axis=0)[0]
        column, label = self._column(values, label)
        parts: list[tuple[Contributions, float, float]] = []
        scores: list[float] = []
        for member in self.members:
            slope, intercept = target.spread, target.mean
            if target.is_classification:
                slope, intercept = (
                    float(array[column]) for array in (member.calibration.slope, member.calibration.intercept)
                )
            parts.append((model.contributions(member.fitted, adapter, self.structure), slope, intercept))
            scores.append(slope * float(member.fitted.scores(inputs)[0, column]) + intercept)
        mean = mean_of(parts, column)
        sites = {site: float(part) for site, part in sorted(mean.sites.items(), key=lambda pair: -abs(pair[1]))}
        directions: dict[str, list[tuple[float, float]]] = {}
        for site in list(sites)[:TOP]:
            update = adapter.get(site)
            sigmas = [] if update is None else thin_svd(*update.factors(np.float64)).S.tolist()
            directions[site] = [
                (sigma, float(part)) for sigma, part in zip(sigmas, mean.directions[site], strict=False)
            ]
        return Explanation(
            target=target.name,
            model=model.name,
            label=label,
            unit="logit" if target.is_classification else "target",
            how=mean.how,
            score=float(np.mean(scores)),
            baseline=None if mean.baseline is None else float(mean.baseline),
            sites=sites,
            features={name: float(sum(own.values())) for name, own in mean.features.items()},
            directions=directions,
            path=None if adapter.provenance.path is None else str(adapter.provenance.path),
        )

    def _column(self, values: NDArray[np.float64], label: Any) -> tuple[int, Any]:
        """The score that is explained and the class that it speaks for."""
        classes = self.target.classes
        if label is not None and label not in classes:
            raise PredictorError(
                "the predictor knows no such class",
                key=self.target.name,
                expected=f"one of {', '.join(map(str, classes))}" if classes else "no label: the target is a number",
                found=label,
            )
        if not classes:
            return 0, None
        if self.target.task == "binary":
            if label == classes[0]:
                raise PredictorError(
                    "of two classes the second is explained",
                    expected=classes[1],
                    found=label,
                    hint="what speaks for one speaks against the other",
                )
            return 0, classes[1]
        column = int(np.argmax(values)) if label is None else classes.index(label)
        return column, classes[column]

    def evaluate(self, inputs: Inputs, values: Sequence[Any], groups: Sequence[str] = ()) -> Evaluation:
        """Metrics of every member on samples with known values; mean and spread over the members.

        The spread is the standard deviation with n − 1, NaN for a single member.
        """
        return self._evaluation(*self._values_and_spreads(inputs), values, groups)

    def evaluate_adapters(
        self,
        samples: Sequence[Sample],
        values: Sequence[Any],
        groups: Sequence[str] = (),
        advance: Callable[[int], Any] | None = None,
    ) -> Evaluation:
        """As ``evaluate``, from the adapters themselves: from how many it would abstain is then known as well.

        Inputs are held as for ``predict``.

        Raises:
            PredictorError: for an adapter of another structure.
        """
        said: list[NDArray[np.float64]] = []
        spreads: list[NDArray[np.float64]] = []
        abstained = 0
        step = _at_once(self.structure)
        for start in range(0, max(len(samples), 1), step):
            inputs, judgements = self._inputs(samples[start : start + step], advance)
            abstained += sum(judgement is not None and judgement.is_strange for judgement in judgements)
            one, own = self._values_and_spreads(inputs)
            said.append(one)
            spreads.append(own)
        found = self._evaluation(np.concatenate(said, axis=1), np.concatenate(spreads), values, groups)
        return replace(found, abstained=None if self.familiarity is None else abstained)

    def _evaluation(
        self,
        by_member: NDArray[np.float64],
        spreads: NDArray[np.float64],
        values: Sequence[Any],
        groups: Sequence[str],
    ) -> Evaluation:
        """Of the values of every member [members, n, width] and the models' own spreads [n]."""
        encoded = self.target.encode(values, ignore_unknown=True)
        truth = encoded * self.target.spread + self.target.mean if not self.target.is_classification else encoded
        measured = [measure(self.target, truth, predicted) for predicted in by_member]
        metrics = {name: mean_and_sd([one[name] for one in measured]) for name in measured[0]}
        undefined = {
            name: reason
            for one, predicted in zip(measured, by_member, strict=True)
            for name, reason in why_undefined(one, self.target, truth, predicted).items()
        }
        issued = measure_intervals(self.target, self.intervals, by_member.mean(axis=0), truth, spreads)
        metrics |= {name: mean_and_sd([value]) for name, value in issued.items()}
        seen = sum(group_hash(group) in self.groups for group in groups)
        return Evaluation(self.target.name, self.target.task, self.model.name, metrics, len(values), seen, undefined)

    def _values(self, member: Member, inputs: Inputs) -> NDArray[np.float64]:
        return member.calibration.predict(self.target, member.fitted.scores(inputs))

    def _values_and_spreads(self, inputs: Inputs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The values of every member [members, n, width]; the mean of the models' own spreads [n], in their unit."""
        scored = [scores_and_spreads(member.fitted, inputs) for member in self.members]
        pairs = zip(self.members, scored, strict=True)
        values = np.stack([member.calibration.predict(self.target, scores) for member, (scores, _) in pairs])
        if not all(gives_spreads(member.fitted) for member in self.members):
            return values, np.ones(values.shape[1])
        unit = 1.0 if self.target.is_classification else self.target.spread
        return values, unit * np.mean([spreads for _, spreads in scored], axis=0)

    def _prediction(
        self, mean: NDArray[np.float64], sd: float | None, q: float, spread: float, level: float
    ) -> Prediction:
        target = self.target
        facts: dict[str, Any] = {
            "target": target.name,
            "task": target.task,
            "model": self.model.name,
            "sd": sd,
            "level": level,
        }
        if not target.is_classification:
            value = float(mean[0])
            interval = (value - q * spread, value + q * spread) if math.isfinite(q) else None
            return Prediction(value=value, interval=interval, probabilities=None, **facts)
        shares = [1 - float(mean[0]), float(mean[0])] if target.task == "binary" else [float(p) for p in mean]
        value: Any = target.classes[int(np.argmax(shares))]
        classes: tuple[Any, ...] | None = None
        if target.task == "multi-label":
            value = [label for label, share in zip(target.classes, shares, strict=True) if share >= 0.5]
        elif math.isfinite(q):
            held = is_in_set(target, mean, q)
            classes = tuple(label for label, is_held in zip(target.classes, held, strict=True) if is_held)
        probabilities = {str(label): share for label, share in zip(target.classes, shares, strict=True)}
        return Prediction(value=value, interval=None, probabilities=probabilities, classes=classes, **facts)


def _at_once(structure: Structure) -> int:
    """How many adapters are judged together; sides of ``LARGE`` or more are sketched, and count as of that length."""
    sides = sum(min(side, LARGE) for shape in structure.sites.values() for side in shape)
    return max(1, min(AT_ONCE, NUMBERS_AT_ONCE // (structure.rank * sides)))


def _sample(adapter: Adapter) -> Sample:
    return Sample(lambda: adapter, {})


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
