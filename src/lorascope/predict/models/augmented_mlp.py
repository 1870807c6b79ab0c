"""MLP on raw factors in random gauges: the symmetry learnt from examples instead of built in.

Every time that a training adapter is seen, each of its sites is in a fresh random gauge M = P diag(s) Q, with P and Q
uniform orthogonal and log s uniform within ±½ log ``condition``. Validation and prediction take the factors as the
file has them. The network is the plain ``mlp``, so it is as little an invariant as that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorascope.errors import PredictorError
from lorascope.predict.model import Structure, stacks_of
from lorascope.predict.models.mlp import MLP

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AugmentedMLP(MLP):
    """Options: as ``mlp``, and ``condition``, the largest condition number of the gauges."""

    condition: float = 10.0
    name: ClassVar[str] = "augmented-mlp"
    formula: ClassVar[str] = "MLP(flatten (B M⁻¹, M A)), a fresh random M in GL(r) per site and step of training"
    reference: ClassVar[str] = "data augmentation by the symmetry; MLP of Learning on LoRAs (arXiv 2410.04207)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.condition < 1:
            raise PredictorError(
                "the option has an impossible value",
                key="condition",
                expected="a number from 1 to below 1000",
                found=self.condition,
            )

    def _network(
        self, batch: Mapping[str, torch.Tensor], outputs: int, structure: Structure, generator: torch.Generator
    ) -> torch.nn.Module:
        from lorascope.predict.models._augmented_network import Augmented

        return Augmented(
            [(len(names), out, in_) for (out, in_), names in stacks_of(structure).items()],
            structure.rank,
            self.hidden,
            outputs,
            condition=self.condition,
            dropout=self.dropout,
            generator=generator,
        ).calibrate(dict(batch))


MODEL = AugmentedMLP
