"""Ridge on features that a model fixes: the baselines that differ from ``ridge`` by what they may see alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from numpy.typing import NDArray

from lorascope.predict.model import CalibratedOn, Inputs, Invariance, RankPolicy, Sample, Split, Structure
from lorascope.predict.models.ridge import FittedRidge, Ridge
from lorascope.predict.targets import Target


class FixedRidge:
    """A model without options; a member sets ``ridge``."""

    ridge: ClassVar[Ridge]
    invariance: ClassVar[Invariance] = "GL(r)"
    rank_policy: ClassVar[RankPolicy] = "any"
    calibrated_on: ClassVar[CalibratedOn] = "left-out"

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """Each feature as [n, columns] in float64."""
        return self.ridge.inputs(samples, structure, advance)

    def fit(self, train: Split, validation: Split, target: Target, structure: Structure, *, seed: int) -> FittedRidge:
        """Closed form: ``validation`` and ``seed`` are not needed."""
        return self.ridge.fit(train, validation, target, structure, seed=seed)

    def restore(
        self,
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
        target: Target,
        structure: Structure,
    ) -> FittedRidge:
        """From the coefficients."""
        return self.ridge.restore(arrays, values, target, structure)
