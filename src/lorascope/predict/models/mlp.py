"""MLP on the raw factors: the baseline that the symmetry breaks.

It sees B and A entry by entry, so (B M⁻¹, M A), the same finetune, is another input to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import PredictorError
from lorascope.predict.blocks import blocks_of, network_stacks
from lorascope.predict.model import (
    CalibratedOn,
    FittedModel,
    Inputs,
    Invariance,
    RankPolicy,
    Sample,
    Split,
    Structure,
    check_options,
)
from lorascope.predict.targets import Target
from lorascope.symmetry import pad_rank

if TYPE_CHECKING:
    import torch

    from lorascope.predict.neural import Standardised
    from lorascope.predict.training import Schedule


@dataclass(frozen=True)
class MLP:
    """Options: width, dropout, training."""

    hidden: int = 256
    dropout: float = 0.1
    epochs: int = 60
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    name: ClassVar[str] = "mlp"
    formula: ClassVar[str] = "W″ relu(LayerNorm(W′ · flatten (B, A)))"
    reference: ClassVar[str] = "MLP of Learning on LoRAs (arXiv 2410.04207)"
    invariance: ClassVar[Invariance] = "none"
    rank_policy: ClassVar[RankPolicy] = "up to trained"
    calibrated_on: ClassVar[CalibratedOn] = "validation"

    def __post_init__(self) -> None:
        check_options(self)

    def schedule(self) -> Schedule:
        """Of the training."""
        from lorascope.predict.training import Schedule

        return Schedule(epochs=self.epochs, learning_rate=self.learning_rate, weight_decay=self.weight_decay)

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """``x`` [n, Σ_sites (out + in) · rank]: scale · B and A, padded with zeros to the largest trained rank.

        Raises:
            PredictorError: where an adapter has a larger rank than those trained on.
        """
        rows: list[NDArray[Any]] = []
        for block in blocks_of(samples, structure):
            for adapter in block:
                rank = max(update.rank for update in adapter.values())
                if rank > structure.rank:
                    raise PredictorError(
                        "a model on raw factors knows no rank beyond those it was trained on",
                        file=adapter.provenance.path,
                        expected=f"rank {structure.rank} or less",
                        found=f"rank {rank}",
                        hint="fit an invariant model such as ridge or glnet",
                    )
            parts: list[NDArray[Any]] = []
            for stack in network_stacks(block, structure):
                B, A = pad_rank(stack.B, stack.A, structure.rank)
                parts += [B.reshape(len(block), -1), A.reshape(len(block), -1)]
            rows.append(np.concatenate(parts, axis=1))
            if advance is not None:
                advance(len(block))
        return {"x": np.concatenate(rows)}

    def _kind(self) -> type[Standardised]:
        """The network."""
        from lorascope.predict.neural import Standardised

        return Standardised

    def _network(
        self, batch: Mapping[str, torch.Tensor], outputs: int, structure: Structure, generator: torch.Generator
    ) -> torch.nn.Module:
        """The network for training inputs, with their statistics."""
        kind = self._kind()
        network = kind(kind.columns(dict(batch)), self.hidden, outputs, dropout=self.dropout, generator=generator)
        return network.calibrate(dict(batch))

    def fit(self, train: Split, validation: Split, target: Target, structure: Structure, *, seed: int) -> FittedModel:
        """By gradient descent, stopped on validation loss."""
        from lorascope.predict.neural import fit_network

        return fit_network(
            lambda generator, batch: self._network(batch, target.width, structure, generator),
            train,
            validation,
            target,
            schedule=self.schedule(),
            seed=seed,
        )

    def restore(
        self,
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
        target: Target,
        structure: Structure,
    ) -> FittedModel:
        """From the network's parameters."""
        import torch

        from lorascope.predict.neural import restore_network

        columns = len(arrays["mean"])
        network = self._kind()(columns, self.hidden, target.width, dropout=0.0, generator=torch.Generator())
        return restore_network(network, arrays, target)


MODEL = MLP
