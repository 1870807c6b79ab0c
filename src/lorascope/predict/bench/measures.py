"""What is measured of one fitted member.

clean          the metrics on the test adapters, what it predicted of them, its cost
speed          adapters judged in a second, from memory to prediction, features included
an attack      the metrics on the attacked test adapters
unseen-range   fitted anew below a quantile of a hyperparameter, tested above it
also           the metrics on all adapters of another zoo of whose groups it has seen none
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import PredictorError
from lorascope.predict.attack import Change, attacked_samples
from lorascope.predict.bench.cells import Result, reason_of
from lorascope.predict.bench.contenders import Contender
from lorascope.predict.bench.question import Indices, Question, Structures
from lorascope.predict.dataset import Dataset, rows_of
from lorascope.predict.fitting import fit_member
from lorascope.predict.intervals import Trained, calibrate
from lorascope.predict.model import Inputs, Model, Sample, Structure
from lorascope.predict.predictor import Member, Predictor
from lorascope.predict.targets import is_missing

ROOM = 1 << 30
"""Bytes of the inputs that are kept: of attacked adapters and of other zoos; and of the zoo's own adapters as many."""

AT_HAND = 2
"""The parts of the zoo that are kept whatever their size: those that teach and those that test."""

SPEED_ADAPTERS = 256
SPEED_SECONDS = 0.2
SPEED_ROUNDS = 5


class Features:
    """A model's inputs of parts of datasets, worked out once while the model is on the bench.

    Of the zoo's own adapters those asked for last are kept, as many as fit into ``ROOM`` but two parts at least; of
    attacked adapters and other zoos, which every member asks for in turn, the first that fit. The others are worked
    out again.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._own: dict[Any, Inputs] = {}
        self._other: dict[Any, Inputs] = {}

    def of(self, view: str, samples: Sequence[Sample], structure: Structure, *, is_plain: bool = False) -> Inputs:
        """The inputs of samples; ``view`` names them, the same samples always by the same name."""
        key = (view, *_key(structure))
        kept = self._own if is_plain else self._other
        if key in kept:
            if is_plain:
                kept[key] = kept.pop(key)  # the last again
            return kept[key]
        inputs = self._model.inputs(samples, structure)
        if is_plain:
            kept[key] = inputs
            while len(kept) > AT_HAND and _bytes(kept) > ROOM:
                del kept[next(iter(kept))]
        elif _bytes({**kept, key: inputs}) <= ROOM:
            kept[key] = inputs
        return inputs


def _bytes(kept: Mapping[Any, Inputs]) -> int:
    return sum(array.nbytes for inputs in kept.values() for array in inputs.values())


@dataclass(frozen=True, eq=False)
class Trial:
    """A contender on a question with a seed; it is fitted when first asked."""

    contender: Contender
    question: Question
    features: Features
    structures: Structures
    seed: int
    wider: Question | None = None
    """The question that this one is a part of, whose inputs are there already."""

    @cached_property
    def taught(self) -> Question:
        """The question as it is taught: of the shuffled baseline, with its labels among others' adapters."""
        return self.question.shuffled(self.seed) if self.contender.is_shuffled else self.question

    @cached_property
    def fitted(self) -> tuple[Member, Trained, float]:
        """The member, what its intervals come from, and the seconds of its fitting; featurising is not among them."""
        question = self.taught
        inputs = self.inputs(question.taught)
        start = time.perf_counter()
        member, trained = fit_member(
            self.contender.model,
            inputs,
            question.encoded,
            question.names(question.taught),
            question.target,
            question.structure,
            seed=self.seed,
        )
        return member, trained, time.perf_counter() - start

    @cached_property
    def predictor(self) -> Predictor:
        """The member alone as a predictor."""
        question, (member, trained, _) = self.taught, self.fitted
        intervals = calibrate(question.target, [trained], question.encoded, question.names(question.taught))
        return Predictor(question.target, self.contender.model, question.structure, (member,), intervals=intervals)

    def inputs(self, indices: Indices) -> Inputs:
        """The inputs of adapters of the zoo as they are: rows of those of the whole question where there are such."""
        whole = self.wider or self.question
        is_alike = _key(whole.structure) == _key(self.question.structure)
        for part in (whole.taught, whole.tested) if is_alike else ():
            if len(indices) < len(part) and np.isin(indices, part).all():
                return rows_of(self.inputs(part), np.searchsorted(part, indices))
        samples = [self.question.dataset.samples[i] for i in indices]
        return self.features.of(f"plain {_digest(indices)}", samples, self.question.structure, is_plain=True)

    def metrics(self, inputs: Inputs, values: Sequence[Any]) -> dict[str, float]:
        """The metrics of the member on samples with these values."""
        return {name: found["mean"] for name, found in self.predictor.evaluate(inputs, values).metrics.items()}

    def values(self, indices: Indices) -> list[Any]:
        """The labels of adapters of the zoo."""
        known = self.question.dataset.values(self.question.target.name)
        return [known[i] for i in indices]


@dataclass(frozen=True, eq=False)
class Measure:
    """A column: its title, what determines it beside the member, and how it is taken."""

    column: str
    key: str
    take: Callable[[Trial], Result]


def attempt(trial: Trial, measure: Measure) -> Result:
    """The result of a measure, or why there is none: one model that breaks must not end the bench.

    A ``PredictorError`` is the model's own refusal; anything else that it raises is a failure.
    """
    try:
        return {"status": "ok", **measure.take(trial)}
    except PredictorError as error:
        return {"status": "refused", "reason": reason_of(error)}
    except Exception as error:  # models may come from other packages, and raise what they like
        return {"status": "failed", "reason": reason_of(error)}


def _clean(trial: Trial) -> Result:
    question = trial.question
    inputs = trial.inputs(question.tested)
    member, _, seconds = trial.fitted
    predicted = member.calibration.predict(question.target, member.fitted.scores(inputs))
    arrays, _ = member.fitted.state()
    measured = trial.predictor.evaluate(inputs, trial.values(question.tested))
    return {
        "metrics": defined({name: found["mean"] for name, found in measured.metrics.items()}),
        "undefined": dict(measured.undefined),
        "predicted": packed(predicted),
        "training_seconds": seconds,
        "parameters": int(sum(array.size for array in arrays.values())),
    }


CLEAN = Measure("clean", "clean", _clean)


def _speed(trial: Trial) -> Result:
    question = trial.question
    member, _, _ = trial.fitted
    chosen = question.tested[:SPEED_ADAPTERS]
    samples = [_in_memory(question.dataset.samples[i]) for i in chosen]
    seconds: list[float] = []
    while len(seconds) < SPEED_ROUNDS and sum(seconds) < SPEED_SECONDS:
        start = time.perf_counter()
        inputs = trial.contender.model.inputs(samples, question.structure)
        member.calibration.predict(question.target, member.fitted.scores(inputs))
        seconds.append(time.perf_counter() - start)
    return {"adapters_per_second": len(chosen) / float(np.median(seconds)), "n": len(chosen)}


SPEED = Measure("speed", f"speed of {SPEED_ADAPTERS}", _speed)


def under_attack(column: str, formula: str, change: Change, *, seed: int = 0) -> Measure:
    """The measure of an attack; what it draws is the same for all models and members."""

    def take(trial: Trial) -> Result:
        question = trial.question
        tested = question.tested
        dataset = question.dataset
        samples = attacked_samples(
            [dataset.samples[i] for i in tested], [dataset.ids[i] for i in tested], change, seed=seed
        )
        inputs = trial.features.of(f"{column} {seed} {_digest(tested)}", samples, question.structure)
        return {"metrics": defined(trial.metrics(inputs, trial.values(tested))), "n": len(tested)}

    return Measure(column, f"{column}: {formula}, seed {seed}", take)


def unseen_range(hyperparameter: str) -> Measure:
    """The measure of a range of a hyperparameter that was never trained on.

    ``reference`` are the metrics, on the same adapters, of the member that was taught by all.
    """

    def take(trial: Trial) -> Result:
        narrowed, said = trial.question.beyond(hyperparameter, trial.structures)
        other = replace(trial, question=narrowed, wider=trial.question)
        values = trial.values(narrowed.tested)
        return {
            "metrics": defined(other.metrics(other.inputs(narrowed.tested), values)),
            "reference": defined(trial.metrics(trial.inputs(narrowed.tested), values)),
            "n": len(values),
            "taught": len(narrowed.taught),
            "range": said,
        }

    return Measure("unseen-range", f"unseen-range of {hyperparameter}", take)


def also(name: str, dataset: Dataset, data: str) -> Measure:
    """The measure of another zoo: all of its adapters, but those of groups that were learnt from.

    Args:
        name: the column's title.
        dataset: of the other zoo.
        data: its fingerprint.
    """

    def take(trial: Trial) -> Result:
        question = trial.question
        values = dataset.values(question.target.name)
        learnt = set(question.names(question.taught))
        known = [i for i in range(len(dataset)) if not is_missing(values[i])]
        chosen = [i for i in known if dataset.groups[i] not in learnt]
        if not chosen:
            raise PredictorError(
                "no adapter of the other zoo is left to be judged",
                found=f"{len(known)} with a value of {question.target.name}, all of groups that were learnt from",
            )
        view = f"also {data} {_digest(np.asarray(chosen, np.int64))}"
        inputs = trial.features.of(view, [dataset.samples[i] for i in chosen], question.structure)
        return {
            "metrics": defined(trial.metrics(inputs, [values[i] for i in chosen])),
            "n": len(chosen),
            "seen": len(known) - len(chosen),
            "unlabelled": len(dataset) - len(known),
        }

    return Measure(name, f"also {name}: {data}", take)


def defined(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for JSON: null where undefined."""
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}


def packed(predicted: NDArray[np.float64]) -> dict[str, Any]:
    """Predictions as text: float32, little-endian, in base64."""
    return {"shape": list(predicted.shape), "float32": base64.b64encode(predicted.astype("<f4").tobytes()).decode()}


def unpacked(value: Mapping[str, Any]) -> NDArray[np.float64]:
    """Predictions that :func:`packed` wrote."""
    return np.frombuffer(base64.b64decode(value["float32"]), "<f4").reshape(value["shape"]).astype(np.float64)


def _in_memory(sample: Sample) -> Sample:
    """The sample with its factors read from the disk."""
    adapter = sample.read()
    sites = {
        name: replace(update, B=np.array(update.B), A=np.array(update.A)) if isinstance(update, LowRank) else update
        for name, update in adapter.items()
    }
    held: Adapter = adapter.with_sites(sites)
    return sample._replace(read=lambda: held)


def _key(structure: Structure) -> tuple[Any, ...]:
    """The structure as a value; the order of its sites matters."""
    return tuple(structure.sites.items()), structure.rank, structure.hyperparameters


def _digest(indices: Indices) -> str:
    return blake2b(indices.astype(np.int64).tobytes(), digest_size=8).hexdigest()
