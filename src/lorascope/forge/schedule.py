"""Schedules of the learning rate, for N adapters at once.

    warm-up     step / warmup
    constant    1
    linear      (steps − step) / (steps − warmup)
    cosine      ½ (1 + cos(π · (step − warmup) / (steps − warmup)))

As in ``transformers``' ``get_…_schedule_with_warmup``: with warm-up the first step has a rate of zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

Schedule = Literal["constant", "linear", "cosine"]


class Scheduled(Protocol):
    """What a schedule is told by."""

    @property
    def steps(self) -> int: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def warmup(self) -> int: ...


def factor(of: Scheduled, step: int) -> float:
    """The share of the learning rate at a step."""
    if step < of.warmup:
        return step / of.warmup
    left = max(of.steps - of.warmup, 1)
    progress = min((step - of.warmup) / left, 1.0)
    if of.schedule == "linear":
        return 1 - progress
    if of.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def factors(trainings: Sequence[Scheduled], step: int) -> list[float]:
    """The shares of all adapters at a step."""
    return [factor(training, step) for training in trainings]
