"""Dropout of adapters: each adapter its own rate and its own random numbers.

The masks of an adapter are a function of its seed, the step and the part of the step, and are drawn site by site in the
order of the forward pass: so they are the same whatever is trained beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorascope.forge.slot import Slot


class Dropout:
    """x [N · b, …] → x with a share of each adapter's entries zero and the others larger by 1 / (1 − share)."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = tuple(slots)
        self._streams = [torch.Generator() for _ in slots]
        self.begin(0, 0)

    @property
    def is_off(self) -> bool:
        """Whether no adapter has any."""
        return not any(slot.dropout for slot in self._slots)

    def begin(self, step: int, part: int) -> None:
        """Start the masks of one part of one step."""
        for slot, stream in zip(self._slots, self._streams, strict=True):
            if slot.dropout:
                stream.manual_seed(slot.seed_of("dropout", step, part))

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_off or not x.is_floating_point():
            return x
        of_each = x.view(len(self._slots), -1, *x.shape[1:])
        factors = torch.ones(of_each.shape, dtype=torch.float32)
        for factor, slot, stream in zip(factors, self._slots, self._streams, strict=True):
            if slot.dropout:
                factor.uniform_(generator=stream).ge_(slot.dropout).div_(1 - slot.dropout)
        return (of_each * factors.to(x)).view(x.shape)
