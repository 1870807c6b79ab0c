"""Dropout of adapters: each adapter its own rate and its own random numbers.

The masks of an adapter are a function of its seed, the step, the part of the step, and the number of the site in the
forward pass. They are drawn token by token: so they are the same whatever is trained beside it, also where texts are
padded to the longest of all adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorascope.forge.slot import Slot

_APART = 0x9E3779B97F4A7C15  # between the seeds of two sites: odd, so that no two of them are the same


class Dropout:
    """x [N · b, …] → x with a share of each adapter's entries zero and the others larger by 1 / (1 − share)."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = tuple(slots)
        self._streams = [torch.Generator() for _ in slots]
        self._seeds = [0] * len(self._slots)
        self.begin(0, 0)

    @property
    def is_off(self) -> bool:
        """Whether no adapter has any."""
        return not any(slot.dropout for slot in self._slots)

    def begin(self, step: int, part: int) -> None:
        """Start the masks of one part of one step."""
        self._seeds = [slot.seed_of("dropout", step, part) if slot.dropout else 0 for slot in self._slots]
        self._sites = 0

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_off or not x.is_floating_point():
            return x
        of_each = x.view(len(self._slots), -1, *x.shape[1:])
        # [N, tokens, b, …] where there are tokens, so that a longer padding adds numbers at the end of a stream
        has_tokens = x.ndim > 2
        shape = of_each.transpose(1, 2).shape if has_tokens else of_each.shape
        factors = torch.ones(shape, dtype=torch.float32)
        for factor, slot, stream, seed in zip(factors, self._slots, self._streams, self._seeds, strict=True):
            if slot.dropout:
                stream.manual_seed((seed + self._sites * _APART) % 2**63)
                factor.uniform_(generator=stream).ge_(slot.dropout).div_(1 - slot.dropout)
        self._sites += 1
        factors = factors.transpose(1, 2) if has_tokens else factors
        return (of_each * factors.to(x)).view(x.shape)
