"""What a predictor says of one adapter, with what vouches for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.predict.intervals import LEVEL


@dataclass(frozen=True)
class Prediction:
    """What a predictor says of one adapter.

    Where ``abstained``, the adapter is unlike those of training: ``value`` is what the members say all the same, and
    nothing vouches for it, nor for the interval. ``as_dict`` leaves all of that out.

    Args:
        value: a number, a class, or the list of labels held more likely than not.
        interval: for regression, where the truth lies with probability ``level``; None if it was never
            calibrated on enough samples.
        probabilities: for classification, class → probability.
        sd: the standard deviation over members, of the value or the largest of a probability; None for one member.
        level: the share of truths that the interval or the set is to hold.
        classes: for binary and multi-class targets, the classes one of which is true with probability ``level``; None
            if it was never calibrated on enough samples.
        unfamiliarity, p_value: how unlike training adapters the adapter is, and how rare that is among such; None of
            a model that does not look at weights.
        abstained, reason: whether that is so rare that nothing should be said, and what is strange.
    """

    target: str
    task: str
    model: str
    value: Any
    interval: tuple[float, float] | None
    probabilities: Mapping[str, float] | None
    sd: float | None
    path: str | None = None
    level: float = LEVEL
    classes: tuple[Any, ...] | None = None
    unfamiliarity: float | None = None
    p_value: float | None = None
    abstained: bool = False
    reason: str | None = None

    def as_dict(self, *, force: bool = False) -> dict[str, Any]:
        """The prediction as a JSON object; where the predictor abstains without a value, unless forced."""
        is_said = force or not self.abstained
        said: dict[str, Any] = {
            "prediction": self.value,
            "interval": None if self.interval is None else list(self.interval),
            "classes": None if self.classes is None else list(self.classes),
            "probabilities": None if self.probabilities is None else dict(self.probabilities),
            "sd": self.sd,
        }
        return {
            "schema_version": 2,
            "path": self.path,
            "target": self.target,
            "task": self.task,
            "model": self.model,
            "level": self.level,
            **(said if is_said else dict.fromkeys(said)),
            "unfamiliarity": self.unfamiliarity,
            "p_value": self.p_value,
            "abstained": self.abstained,
            "reason": self.reason,
        }
