"""What a LoL model is, and the family of them.

A model turns adapters into inputs (arrays with one row per adapter), learns from inputs and encoded targets, and gives
scores. It declares the group under which its scores do not change and what it does with ranks; the laws test
both declarations, in both directions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.errors import PredictorError
from lorascope.family import Family
from lorascope.predict.targets import Target

Invariance = Literal["GL(r)", "none", "blind"]
"""Of which group the scores are invariants: GL(r) at each site, none; ``blind`` models never see the weights."""

RankPolicy = Literal["any", "up to trained"]

CalibratedOn = Literal["left-out", "validation"]
"""Whose scores a fitted model offers for uncertainty: the training samples', each left out with its group, or those of
the samples that stopped the training, which then are replaced by others, as these have steered."""

GATES = Literal["hard", "smooth"]
"""The gates of GL-ReLU."""

Inputs = dict[str, NDArray[Any]]
"""A model's inputs: arrays whose first axis runs over the adapters."""


class Sample(NamedTuple):
    """One adapter as the models see it: how to read it, and its declared hyperparameters (never a label)."""

    read: Callable[[], Adapter]
    hyperparameters: Mapping[str, Any]


@dataclass(frozen=True)
class Structure:
    """What the adapters that a model is made for have in common.

    ``sites``: name → (out, in), in the order of computation; ``rank``: the largest rank among the training
    adapters; ``hyperparameters``: the names declared by the zoo.
    """

    sites: Mapping[str, tuple[int, int]]
    rank: int
    hyperparameters: tuple[str, ...] = ()


def stacks_of(structure: Structure) -> dict[tuple[int, int], list[str]]:
    """(out, in) → the sites of that shape, shapes in the order in which they first occur.

    >>> stacks_of(Structure({"q": (4, 4), "up": (8, 4), "v": (4, 4)}, 2))
    {(4, 4): ['q', 'v'], (8, 4): ['up']}
    """
    shapes: dict[tuple[int, int], list[str]] = {}
    for name, (out, in_) in structure.sites.items():
        shapes.setdefault((out, in_), []).append(name)
    return shapes


def ordered_sites(structure: Structure) -> list[str]:
    """The sites in the order in which stacks and features run over them."""
    return [name for names in stacks_of(structure).values() for name in names]


def check_options(model: Any) -> None:
    """Refuse options with which no model can be built, whoever gave them.

    Counts are 1 to 8192 (``layers`` to 64), ``dropout`` in [0, 1), rates not negative, names from what is known.

    Raises:
        PredictorError: naming the option.
    """
    for field in dataclasses.fields(model):
        name, value, default = field.name, getattr(model, field.name), field.default
        if isinstance(default, tuple):
            fits = isinstance(value, tuple) and len(value) > 0 and all(isinstance(item, str) for item in value)
            expected = "one name or more"
        elif isinstance(default, str):
            names = get_args(get_type_hints(type(model))[name])
            fits, expected = value in names, f"one of {', '.join(names)}"
        elif isinstance(default, bool):
            fits, expected = isinstance(value, bool), "true or false"
        elif isinstance(default, int):
            least, most = (0, 2**63 - 1) if name == "seed" else (1, 64 if name == "layers" else 8192)
            fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
            expected = f"a whole number from {least} to {most}"
        else:
            most = 1.0 if name == "dropout" else 1e3
            fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < most
            expected = f"a number from 0 to below {most:g}"
        if not fits:
            raise PredictorError("the option has an impossible value", key=name, expected=expected, found=value)


class Split(NamedTuple):
    """Inputs with their encoded targets [n, width], and the group of each sample."""

    inputs: Inputs
    targets: NDArray[np.float64]
    groups: tuple[str, ...]


class FittedModel(Protocol):
    """A model after fitting: scores, and its state as plain arrays and plain values.

    It may also give ``scores_and_spreads(inputs)``, in one pass the scores and its own standard deviation of each, [n];
    then ``calibration_spreads`` holds those of the calibration samples, each left out like its score, and intervals are
    in proportion.
    """

    calibration: tuple[NDArray[np.float64], NDArray[np.float64]]
    """Scores and encoded targets of samples that did not set the weights, for uncertainty: of all training samples in
    order, or of the validation samples, as the model's ``calibrated_on`` says.
    """

    def scores(self, inputs: Inputs) -> NDArray[np.float64]:
        """[n, width] in float64."""
        ...

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays for safetensors, and values for JSON."""
        ...


class Model(Protocol):
    """A member of the family: a frozen dataclass whose fields are its options.

    A model whose inputs are features of ``lorascope.features``, name → columns, may say so by ``members()``, the
    list of them: then a predictor computes them from the same decomposition as its judgement of familiarity. One
    that can say what its scores come from has ``contributions(fitted, adapter, structure)`` (``explanation``).
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    reference: ClassVar[str]
    invariance: ClassVar[Invariance]
    rank_policy: ClassVar[RankPolicy]
    calibrated_on: ClassVar[CalibratedOn]

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """The samples as arrays; streams over them."""
        ...

    def fit(self, train: Split, validation: Split, target: Target, structure: Structure, *, seed: int) -> FittedModel:
        """Learn from ``train``; ``validation`` may steer the training, never set weights."""
        ...

    def restore(
        self,
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
        target: Target,
        structure: Structure,
    ) -> FittedModel:
        """The fitted model from its saved state."""
        ...


MODELS: Family[type[Model]] = Family("model", "lorascope.predict.models", "MODEL", "lorascope.models")

DEFAULT_MODEL = "kernels"
"""The member that is fitted where nobody names one."""
