"""The perceptron on products of factors; apart because it needs PyTorch to be defined."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch

from lorascope.predict.neural import Standardised, floored
from lorascope.predict.training import Batch

BLOCK = 32
"""How many adapters are multiplied out at once."""


class OnProducts(Standardised):
    """``Standardised`` on flatten(B · A) of all stacks of a batch with arrays B0, A0, B1, A1, …"""

    @staticmethod
    def columns(batch: Batch) -> int:
        """Σ out · in over all sites."""
        pairs = ((batch[f"B{i}"], batch[f"A{i}"]) for i in range(len(batch) // 2))
        return sum(B.shape[1] * B.shape[2] * A.shape[3] for B, A in pairs)

    def calibrate(self, batch: Batch) -> Self:
        """Take the statistics of the training inputs, in two passes of bounded memory."""
        n, zero = len(batch["B0"]), torch.zeros(self.columns(batch), dtype=torch.float64)
        mean = sum((x.double().sum(0) for x in _products(batch)), zero) / n
        square = sum(((x.double() - mean).square().sum(0) for x in _products(batch)), zero) / max(n - 1, 1)
        self.get_buffer("mean").copy_(mean)
        self.get_buffer("spread").copy_(floored(square.sqrt()))
        return self

    def forward(self, batch: Batch) -> torch.Tensor:
        """[n, outputs]."""
        return torch.cat([super(OnProducts, self).forward({"x": x}) for x in _products(batch)])


def _products(batch: Batch) -> Iterator[torch.Tensor]:
    """[≤ BLOCK, columns] for one block of adapters after the other."""
    for start in range(0, len(batch["B0"]), BLOCK):
        part = slice(start, start + BLOCK)
        pairs = ((batch[f"B{i}"][part], batch[f"A{i}"][part]) for i in range(len(batch) // 2))
        yield torch.cat([(B @ A).flatten(1) for B, A in pairs], dim=1)
