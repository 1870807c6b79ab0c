"""Which examples each adapter sees in which part of which step: epoch after epoch, each in an order of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lorascope.forge.recipe import Row

BATCH = 8
"""Examples of one adapter in one part of a step."""


def numbers_of(rows: Sequence[Row], epochs: Sequence[Callable[[], np.ndarray]]) -> Callable[[int, int], Tensor]:
    """(step, part) → the numbers of the examples [N · b] that the adapters of these rows see.

    Args:
        rows: with ``steps`` and ``accumulate``.
        epochs: for each adapter what gives the examples of its next epoch, in order.
    """
    parts = torch.tensor([row["accumulate"] for row in rows]).view(-1, 1)
    total = max(row["steps"] * row["accumulate"] for row in rows) * BATCH
    order = torch.from_numpy(np.stack([_order(total, epoch) for epoch in epochs]))  # [N, steps · parts · b]

    def numbers(step: int, part: int) -> Tensor:
        # of an adapter that has no such step or part whatever there is: it has no weight
        first = (step * parts + part) * BATCH
        now = (first + torch.arange(BATCH)).clamp(max=total - 1)
        return order.gather(1, now).flatten()

    return numbers


def _order(total: int, epoch: Callable[[], np.ndarray]) -> np.ndarray:
    drawn, count = [np.empty(0, np.int64)], 0
    while count < total:
        drawn.append(epoch())
        count += len(drawn[-1])
    return np.concatenate(drawn)[:total]
