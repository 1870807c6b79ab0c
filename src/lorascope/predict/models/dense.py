"""Dense: an MLP on ΔW itself, all its entries at every site. An invariant, for what it costs.

The products are formed from balanced factors batch by batch, so that memory holds the factors of the zoo and not
its n · Σ out · in entries; the first layer has a weight for each of these. Where Σ out · in is beyond 2²¹ entries,
P ΔW Qᵀ takes the place of ΔW: the random projections of ``features.projection``, ``size`` numbers a side, the exact
sketch computed from the factors. The magnitude stays, which the feature ``delta`` divides out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from lorascope.errors import PredictorError
from lorascope.features import projections
from lorascope.predict.model import Inputs, Invariance, RankPolicy, Sample, Structure
from lorascope.predict.models._balanced import balanced_inputs
from lorascope.predict.models.mlp import MLP

if TYPE_CHECKING:
    from lorascope.predict.neural import Standardised

BUDGET = 2**21
"""Entries of ΔW over all sites that are still taken as they are: 8 MB of float32 per adapter, formed and dropped."""


@dataclass(frozen=True)
class Dense(MLP):
    """Options: as ``mlp``; ``sketch``, if ΔW beyond the budget is sketched; ``size`` and ``seed`` of the sketch.

    ``hidden`` is 16 in the paper's code; on 800 adapters of digits-vit, 64 was better on the validation part.
    """

    hidden: int = 64
    dropout: float = 0.5
    sketch: bool = True
    size: int = 64
    seed: int = 0
    name: ClassVar[str] = "dense"
    formula: ClassVar[str] = "MLP(flatten ΔW of every site), P ΔW Qᵀ for ΔW where Σ out · in > 2²¹"
    reference: ClassVar[str] = "MLP + Dense of Learning on LoRAs (arXiv 2410.04207)"
    invariance: ClassVar[Invariance] = "GL(r)"
    rank_policy: ClassVar[RankPolicy] = "any"

    def is_sketched(self, structure: Structure) -> bool:
        """Whether P ΔW Qᵀ takes the place of ΔW for these sites.

        Raises:
            PredictorError: where it would have to and ``sketch`` is false.
        """
        entries = sum(out * in_ for out, in_ in structure.sites.values())
        if entries > BUDGET and not self.sketch:
            raise PredictorError(
                "ΔW of all sites has too many entries",
                key="sketch",
                expected=f"{BUDGET} or fewer",
                found=f"{entries} in {len(structure.sites)} sites",
                hint="leave sketch=true, or fit glnet or ridge, which never form ΔW",
            )
        return entries > BUDGET

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """``B0`` [n, S, out, k] and ``A0`` [n, S, k, in] for the first shape, and so on: P B and A Qᵀ if sketched."""
        change = self._projected if self.is_sketched(structure) else None
        return balanced_inputs(samples, structure, advance, change=change)

    def _projected(self, names: tuple[str, ...], B: NDArray[Any], A: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        P = projections(names, "out", self.size, B.shape[-2], seed=self.seed)
        Q = projections(names, "in", self.size, A.shape[-1], seed=self.seed)
        return P @ B, A @ Q.mT

    def _kind(self) -> type[Standardised]:
        from lorascope.predict.models._dense_network import OnProducts

        return OnProducts


MODEL = Dense
