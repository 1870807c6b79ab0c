"""The perceptron that sees its training inputs in random gauges; apart because it needs PyTorch to be defined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch

from lorascope.predict.neural import Standardised
from lorascope.predict.training import Batch


class Augmented(Standardised):
    """``Standardised`` with the parameters of ``Standardised``; in training, every site gets a new gauge first.

    Args:
        shapes: (sites, out, in) of each stack, in the order in which the columns hold B and A of them.
        rank: of the padded factors.
        condition: the largest condition number of a gauge.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int, int]],
        rank: int,
        hidden: int,
        outputs: int,
        *,
        condition: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        columns = sum(sites * (out + in_) * rank for sites, out, in_ in shapes)
        super().__init__(columns, hidden, outputs, dropout=dropout, generator=generator)
        self._shapes, self._rank, self._condition, self._generator = shapes, rank, condition, generator

    def calibrate(self, batch: Batch) -> Self:
        """Take the statistics of the training inputs in random gauges."""
        super().calibrate({"x": self.turned(batch["x"])})
        return self

    def forward(self, batch: Batch) -> torch.Tensor:
        """[n, outputs]."""
        return super().forward({"x": self.turned(batch["x"])} if self.training else batch)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        """[n, columns] of the same finetunes in new gauges: B Qᵀ s⁻¹ Pᵀ and P s Q A."""
        r, parts, start = self._rank, [], 0
        for sites, out, in_ in self._shapes:
            middle, end = start + sites * out * r, start + sites * (out + in_) * r
            B = x[:, start:middle].reshape(len(x), sites, out, r)
            A = x[:, middle:end].reshape(len(x), sites, r, in_)
            P, Q = self._orthogonal(len(x), sites).to(x), self._orthogonal(len(x), sites).to(x)
            spread = torch.rand(len(x), sites, r, generator=self._generator).sub(0.5) * math.log(self._condition)
            s = spread.exp().to(x)
            parts.append((B @ (Q.mT / s[..., None, :]) @ P.mT).flatten(1))
            parts.append((P @ (s[..., :, None] * (Q @ A))).flatten(1))
            start = end
        return torch.cat(parts, dim=1)

    def _orthogonal(self, *batch: int) -> torch.Tensor:
        normal = torch.randn(*batch, self._rank, self._rank, generator=self._generator)
        Q, R = torch.linalg.qr(normal)
        # without the signs of R the distribution is LAPACK's, and at rank 1 always +1
        return Q * torch.sign(torch.diagonal(R, dim1=-2, dim2=-1))[..., None, :]
