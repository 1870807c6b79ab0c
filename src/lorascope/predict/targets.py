"""What is predicted: the task that a label column poses, and its numbers.

regression    numbers                     scores: the value, standardised
binary        true/false, 0/1, two words  scores: one logit
multi-label   lists of values             scores: one logit per value that occurs
multi-class   three words or more         scores: one logit per value
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import PredictorError

Task = Literal["regression", "binary", "multi-label", "multi-class"]
TASKS = get_args(Task)


@dataclass(frozen=True)
class Target:
    """A label column as a task.

    ``classes`` are the values in sorted order, the positive one last where there are two; empty for regression.
    ``mean`` and ``spread`` standardise a regression target by its training values.
    """

    name: str
    task: Task
    classes: tuple[Any, ...] = ()
    mean: float = 0.0
    spread: float = 1.0

    @property
    def width(self) -> int:
        """The number of scores."""
        return len(self.classes) if self.task in ("multi-label", "multi-class") else 1

    @property
    def is_classification(self) -> bool:
        """Whether scores become probabilities."""
        return self.task != "regression"

    @classmethod
    def of(cls, name: str, values: Sequence[Any], task: str | None = None) -> Target:
        """The target that a column poses, found from its values.

        Lists make a multi-label task; true/false, 0/1 and two words a binary one; more words a multi-class one; all
        other numbers a regression, also where only two of them occur: say ``task`` where they are classes.

        Raises:
            PredictorError: where the column is empty or constant, or the ``task`` asked for does not fit.

        >>> Target.of("classes", [[1, 2], [2, 7]]).classes
        (1, 2, 7)
        >>> Target.of("poisoned", [True, False, True]).task
        'binary'
        >>> Target.of("accuracy", [0.5, 0.75, 1.0]).mean
        0.75
        """
        if not values:
            raise PredictorError("the target has no values to learn from", key=name)
        found = task or _task_of(values)
        if found not in TASKS:
            raise PredictorError("unknown task", key=name, expected=f"one of {', '.join(TASKS)}", found=found)
        is_listed = any(isinstance(value, list | tuple) for value in values)
        if is_listed != (found == "multi-label"):
            raise PredictorError("the task does not fit the values of the column", key=name, found=found)
        if found == "regression":
            return cls._regression(name, values)
        flat = {item for value in values for item in value} if is_listed else set(values)
        classes = tuple(sorted(flat, key=lambda value: (str(type(value)), value)))
        if len(classes) < 2 or (found == "binary" and len(classes) != 2):
            raise PredictorError(
                "the target does not vary as the task needs",
                key=name,
                expected="two values" if found == "binary" else "at least two values",
                found=f"{len(classes)}: {', '.join(map(str, classes[:5]))}",
            )
        return cls(name, found, classes)  # type: ignore[arg-type]  # found is one of TASKS, checked above

    @classmethod
    def _regression(cls, name: str, values: Sequence[Any]) -> Target:
        try:
            numbers = np.asarray(values, np.float64)
        except (TypeError, ValueError) as error:
            raise PredictorError("a regression needs numbers", key=name, found=values[0]) from error
        spread = float(numbers.std())
        if not spread > 0:
            raise PredictorError("the target is constant: nothing to learn", key=name, found=values[0])
        return cls(name, "regression", (), float(numbers.mean()), spread)

    def encode(self, values: Sequence[Any], *, ignore_unknown: bool = False) -> NDArray[np.float64]:
        """[n, width]: standardised numbers, or 0 and 1.

        A class that is not among ``classes`` is an error, or, if ignored, leaves its places 0: in evaluation a class
        that was never seen in fitting counts as missed.
        """
        if self.task == "regression":
            return (np.asarray(values, np.float64).reshape(-1, 1) - self.mean) / self.spread
        index = {value: i for i, value in enumerate(self.classes)}
        coded = np.zeros((len(values), len(self.classes)))
        for row, value in enumerate(values):
            for item in value if self.task == "multi-label" else [value]:
                if item not in index:
                    if ignore_unknown:
                        continue
                    raise PredictorError(
                        "a label is not among those the predictor was fitted on",
                        key=self.name,
                        expected=f"one of {', '.join(map(str, self.classes[:12]))}",
                        found=item,
                    )
                coded[row, index[item]] = 1.0
        return coded[:, 1:] if self.task == "binary" else coded


def is_missing(value: Any) -> bool:
    """Whether a cell says nothing: it is null, or a number that is not finite.

    >>> [is_missing(value) for value in (None, float("nan"), 0.0, False, [], "")]
    [True, True, False, False, False, False]
    """
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _task_of(values: Sequence[Any]) -> Task:
    if any(isinstance(value, list | tuple) for value in values):
        return "multi-label"
    kinds = set(values)
    if any(isinstance(value, str) for value in kinds):
        return "binary" if len(kinds) == 2 else "multi-class"
    return "binary" if kinds <= {0, 1} else "regression"
