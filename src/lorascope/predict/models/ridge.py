"""Ridge: closed form on exact invariants of every site; fits in seconds, and runs without PyTorch.

Groups of features (log norms, log spectra, the direction of ΔW, its column space, its row space) have one penalty
each; penalties are chosen by closed-form leave-one-out. The column space matters most for what a LoRA was trained
on: with B = 0 at the start, B grows along the gradient's output side, while the row space begins as noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.features import FEATURES, featurise
from lorascope.features.feature import Feature
from lorascope.predict.blocks import checked
from lorascope.predict.leave_one_out import RidgeSolution, fit_ridge
from lorascope.predict.model import Inputs, Invariance, RankPolicy, Sample, Split, Structure, check_options
from lorascope.predict.targets import Target

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

    def __post_init__(self) -> None:
        check_options(self)

    def _members(self) -> list[Feature]:
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
        return dict(featurise(adapters, self._members(), sites=list(structure.sites), advance=advance))

    def fit(self, train: Split, validation: Split, target: Target, structure: Structure, *, seed: int) -> FittedRidge:
        """Closed form: ``validation`` and ``seed`` are not needed."""
        solution = fit_ridge(train.inputs, train.targets, sample_groups=train.groups)
        return FittedRidge(solution, train.targets)

    def restore(
        self,
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
        target: Target,
        structure: Structure,
    ) -> FittedRidge:
        """From the coefficients."""
        slopes = {name: arrays[f"coefficients.{name}"] for name in values["weights"]}
        solution = RidgeSolution(
            slopes, arrays["intercept"], values["weights"], values["penalty"], np.zeros((0, target.width))
        )
        return FittedRidge(solution, np.zeros((0, target.width)))


class FittedRidge:
    """Coefficients, and the leave-one-out scores of the training samples for calibration."""

    def __init__(self, solution: RidgeSolution, targets: NDArray[np.float64]) -> None:
        self.solution = solution
        self.calibration = (solution.left_out, targets)

    def scores(self, inputs: Inputs) -> NDArray[np.float64]:
        """[n, width]."""
        return self.solution.predict(inputs)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Coefficients by feature; the weights of the features and the penalty."""
        arrays = {f"coefficients.{name}": slope for name, slope in self.solution.coefficients.items()}
        values = {"weights": dict(self.solution.weights), "penalty": self.solution.penalty}
        return {**arrays, "intercept": self.solution.intercept}, values


MODEL = Ridge
