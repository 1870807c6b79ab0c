"""``Kind``: what the forge needs to know of one way to adapt a layer, for N adapters at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorascope.adapter import Update


class Kind(ABC):
    """One way to adapt a layer. A kind is one module in ``kinds`` with an instance named ``KIND``.

    Attributes:
        name: as in the manifest and on the command line.
        reference: the paper.
        formula: ΔW in terms of the parameters.
    """

    name: str
    reference: str
    formula: str

    @abstractmethod
    def check(self, site: str, module: nn.Module) -> None:
        """Raise ``ForgeError`` where this kind cannot adapt a layer of this class."""

    @abstractmethod
    def initialise(self, module: Any, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The parameters of one adapter at one site, before training.

        The engine stacks them over adapters. Where ranks are mixed it pads each with zeros, at the end of every
        dimension, to the largest: zeros must stay zeros in training.
        """

    @abstractmethod
    def forward(self, x: Tensor, module: Any, parameters: Mapping[str, Tensor], scale: Tensor) -> Tensor:
        """The adapted layer: x [N, rows, in] → [N, rows, out]; parameters [N, …], scale [N, 1, 1]."""

    @abstractmethod
    def export(self, module: Any, parameters: Mapping[str, Tensor], rank: int, alpha: float) -> Update:
        """The update of one adapter at one site, from its (padded) parameters."""

    @abstractmethod
    def scale(self, rank: int, alpha: float) -> float:
        """The factor of this kind for a rank and an alpha."""
