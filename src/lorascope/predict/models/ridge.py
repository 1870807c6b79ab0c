"""Ridge: closed form on exact invariants of every site; fits in seconds, and runs without PyTorch.

Groups of features (log norms, log spectra, the direction of ΔW, its column space, its row space) have one penalty
each; penalties are chosen by closed-form leave-one-out. The column space matters most for what a LoRA was trained
on: with B = 0 at the start, B grows along the gradient's output side, while the row space begins as noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.errors import PredictorError
from lorascope.features import FEATURES, featurise
from lorascope.features.feature import Feature
from lorascope.predict.blocks import checked
from lorascope.predict.explanation import Contributions
from lorascope.predict.leave_one_out import RidgeSolution, fit_ridge
from lorascope.predict.model import (
    CalibratedOn,
    FittedModel,
    Inputs,
    Invariance,
    RankPolicy,
    Sample,
    Split,
    Structure,
    check_options,
    stacks_of,
)
from lorascope.predict.targets import Target
from lorascope.symmetry import SiteStack, stack_adapters

DEFAULT = ("log-norm", "log-spectrum", "delta", "column-space", "row-space")


@dataclass(frozen=True)
class Ridge:
    """Options: ``features``, names of the family; ``size`` of the sketches, ``seed`` of their projections."""

    features: tuple[str, ...] = DEFAULT
    size: int = 64
    seed: int = 0
    name: ClassVar[str] = "ridge"
    formula: ClassVar[str] = "Σ_sites Σ_g ⟨c_g, φ_g(ΔW)⟩ + c₀, penalties by leave-one-out"
    reference: ClassVar[str] = "lorascope; ridge regression on invariants"
    invariance: ClassVar[Invariance] = "GL(r)"
    rank_policy: ClassVar[RankPolicy] = "any"
    calibrated_on: ClassVar[CalibratedOn] = "left-out"

    def __post_init__(self) -> None:
        check_options(self)

    def members(self) -> list[Feature]:
        """The features that ``inputs`` are made of."""
        members: list[Feature] = []
        for name in self.features:
            member: Any = FEATURES[name]
            sketched = "size" in member.__dataclass_fields__
            members.append(member(size=self.size, seed=self.seed) if sketched else member())
        return members

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """Each feature as [n, columns] in float64."""
        adapters = (checked(sample.read(), structure) for sample in samples)
        return dict(featurise(adapters, self.members(), sites=list(structure.sites), advance=advance))

    def fit(self, train: Split, validation: Split, target: Target, structure: Structure, *, seed: int) -> FittedRidge:
        """Closed form: ``validation`` and ``seed`` are not needed."""
        solution = fit_ridge(train.inputs, train.targets, sample_groups=train.groups)
        means: dict[str, NDArray[np.float64]] = {}
        for member in self.members():
            if member.name in solution.coefficients:
                terms = train.inputs[member.name].mean(axis=0)[:, None] * solution.coefficients[member.name]
                starts = np.cumsum([0, *_columns(member, structure)])[:-1]
                means[member.name] = np.add.reduceat(terms, starts, axis=0)
        return FittedRidge(solution, train.targets, means)

    def contributions(self, fitted: FittedModel, adapter: Adapter, structure: Structure) -> Contributions:
        """Exact: each site's features times their coefficients, less the training mean of the same."""
        solution, means = cast("FittedRidge", fitted).solution, cast("FittedRidge", fitted).means
        if not means:
            raise PredictorError("the predictor does not hold what its explanations start from", hint="fit it again")
        whole = checked(adapter, structure)
        features = {member.name: member for member in self.members() if member.name in solution.coefficients}
        parts: dict[str, dict[str, NDArray[np.float64]]] = {name: {} for name in features}
        directions: dict[str, NDArray[np.float64]] = {}
        starts, place = dict.fromkeys(features, 0), 0
        for stack in stack_adapters([whole], sites=list(structure.sites)):
            values = {name: np.asarray(feature(stack))[0] for name, feature in features.items()}
            by_direction = {
                name: np.asarray(feature.directions(stack))[0]  # type: ignore[attr-defined]  # optional
                for name, feature in features.items()
                if hasattr(feature, "directions")
            }
            for row, site in enumerate(stack.names):
                directions[site] = np.zeros((stack.svd.S.shape[-1], solution.intercept.size))
                for name, value in values.items():
                    stop = starts[name] + value.shape[1]
                    slope = solution.coefficients[name][starts[name] : stop]
                    parts[name][site] = value[row] @ slope - means[name][place]
                    if name in by_direction:
                        directions[site] += by_direction[name][row] @ slope
                    starts[name] = stop
                place += 1
        sites = {site: np.add.reduce([own[site] for own in parts.values()]) for site in directions}
        baseline = solution.intercept + np.add.reduce([mean.sum(axis=0) for mean in means.values()])
        return Contributions("exact", sites, parts, directions, baseline)

    def restore(
        self,
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
        target: Target,
        structure: Structure,
    ) -> FittedRidge:
        """From the coefficients.

        Raises:
            ValueError: where they are not those of these features at these sites.
        """
        slopes = {name: arrays[f"coefficients.{name}"] for name in values["weights"]}
        solution = RidgeSolution(
            slopes, arrays["intercept"], values["weights"], values["penalty"], np.zeros((0, target.width))
        )
        has_means = any(name.startswith("means.") for name in arrays)
        means = {name: arrays[f"means.{name}"] for name in slopes} if has_means else {}
        for member in self.members():
            if member.name in slopes:
                columns = _columns(member, structure)
                expected = (sum(columns), target.width), (len(columns), target.width)
                found = slopes[member.name].shape, means[member.name].shape if has_means else expected[1]
                if found != expected:
                    raise ValueError(f"coefficients and means of {member.name} are {found}, not {expected}")
        return FittedRidge(solution, np.zeros((0, target.width)), means)


def _columns(member: Feature, structure: Structure) -> list[int]:
    """How many columns a feature has at each site, in the order in which features run over them."""
    widths: list[int] = []
    for (out, in_), names in stacks_of(structure).items():
        stack = SiteStack(("any",), np.zeros((1, 1, out, 1)), np.zeros((1, 1, 1, in_)))
        widths += [int(np.asarray(member(stack)).shape[-1])] * len(names)
    return widths


class FittedRidge:
    """Coefficients, and the leave-one-out scores of the training samples for calibration.

    ``means``: feature → [S, width], what each site adds to the scores of the training adapters in the mean.
    """

    def __init__(
        self,
        solution: RidgeSolution,
        targets: NDArray[np.float64],
        means: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> None:
        self.solution = solution
        self.means = means or {}
        self.calibration = (solution.left_out, targets)

    def scores(self, inputs: Inputs) -> NDArray[np.float64]:
        """[n, width]."""
        return self.solution.predict(inputs)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Coefficients by feature; the weights of the features and the penalty."""
        arrays = {f"coefficients.{name}": slope for name, slope in self.solution.coefficients.items()}
        arrays |= {f"means.{name}": mean for name, mean in self.means.items()}
        values = {"weights": dict(self.solution.weights), "penalty": self.solution.penalty}
        return {**arrays, "intercept": self.solution.intercept}, values


MODEL = Ridge
