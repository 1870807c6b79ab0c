"""Models side by side on one zoo: metrics on the test split, what a random gauge leaves of them, and the cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorascope.predict.dataset import Dataset
from lorascope.predict.fitting import fit_predictor
from lorascope.predict.model import Model
from lorascope.predict.predictor import Evaluation, Predictor, usable


@dataclass(frozen=True)
class Comparison:
    """One model on one target.

    ``clean`` and ``gauged`` are its evaluations on the test split as it is and in random gauges; ``seconds`` is the
    time of fitting all members, reading and featurising included when it was the first to need them.
    """

    label: str
    predictor: Predictor
    clean: Evaluation
    gauged: Evaluation
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The row as a JSON object."""
        return {
            "model": self.label,
            "target": self.clean.target,
            "task": self.clean.task,
            "n": self.clean.n,
            "metrics": self.clean.as_dict()["metrics"],
            "in_random_gauge": self.gauged.as_dict()["metrics"],
            "invariance": self.predictor.model.invariance,
            "seconds": round(self.seconds, 2),
        }


def compare_models(
    dataset: Dataset,
    targets: Sequence[str],
    models: Mapping[str, Model],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    condition: float = 100.0,
    done: Callable[[], Any] | None = None,
) -> Iterator[Comparison]:
    """Fit every model to every target and evaluate it on the test split, clean and in random gauges.

    Args:
        dataset: of a zoo.
        targets: label columns.
        models: label in the table → model with its options.
        seeds: as for ``fit_predictor``.
        condition: of the random gauges; their factors are stored in float32 as in a file.
        done: called after each row.
    """
    for target in targets:
        test = dataset.subset(usable(dataset.values(target), dataset.where("test")))
        attacked = test.in_random_gauge(condition=condition)
        values = test.values(target)
        for label, model in models.items():
            start = time.perf_counter()
            predictor = fit_predictor(dataset, target, model, seeds=seeds)
            seconds = time.perf_counter() - start
            clean, gauged = (
                predictor.evaluate(model.inputs(samples.samples, predictor.structure), values, samples.groups)
                for samples in (test, attacked)
            )
            yield Comparison(label, predictor, clean, gauged, seconds)
            if done is not None:
                done()
