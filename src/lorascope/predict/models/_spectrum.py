"""Magnitudes: the logarithms of norms and leading singular values as a standardised input, and a perceptron on them."""

from __future__ import annotations

import torch

from lorascope.features.invariants.log_norm import log_norm
from lorascope.features.invariants.log_spectrum import log_spectrum
from lorascope.predict.models._layers import Columns
from lorascope.predict.neural import Dropout
from lorascope.predict.training import Batch

COUNT = 4
"""How many singular values of a site are seen one by one; ranks beyond change the norm alone."""

DELTA = 0.02
DROPOUT = 0.1


class Spectra(torch.nn.Module):
    """[n, sites · (COUNT + 1)], standardised: ½ log(‖ΔW‖² + ε²) and the log spectrum of each site."""

    def __init__(self, sites: int) -> None:
        super().__init__()
        self.width = sites * (COUNT + 1)
        self.columns = Columns(self.width)

    def calibrate(self, batch: Batch) -> None:
        """Take the statistics of training inputs."""
        self.columns.calibrate([(self._logarithms(batch), 1.0)])

    def forward(self, batch: Batch) -> torch.Tensor:
        """From the arrays S0, S1, …"""
        return self.columns(self._logarithms(batch))

    def _logarithms(self, batch: Batch) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        for i in range(len(batch) // 3):
            S = batch[f"S{i}"]
            parts.append(torch.cat([log_norm(S), log_spectrum(S, COUNT, DELTA)], dim=-1).flatten(1))
        return torch.cat(parts, dim=-1)


class MagnitudeHead(torch.nn.Sequential):
    """Scores from the spectra alone; they start at 0."""

    def __init__(self, columns: int, hidden: int, outputs: int) -> None:
        super().__init__(
            torch.nn.Linear(columns, hidden),
            torch.nn.LayerNorm(hidden),
            torch.nn.ReLU(),
            Dropout(DROPOUT),
            ZeroLinear(hidden, outputs),
        )


class ZeroLinear(torch.nn.Linear):
    """A linear layer that starts at 0."""

    def initialise(self, generator: torch.Generator) -> None:
        """All zeros."""
        for parameter in self.parameters():
            parameter.zero_()
