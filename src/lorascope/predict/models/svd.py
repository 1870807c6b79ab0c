"""SVD: an MLP on the singular values of every site. Invariant, and blind to all directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.predict.blocks import blocks_of, network_stacks
from lorascope.predict.explanation import Contributions
from lorascope.predict.model import FittedModel, Inputs, Invariance, RankPolicy, Sample, Structure, ordered_sites
from lorascope.predict.models.mlp import MLP

if TYPE_CHECKING:
    from lorascope.predict.neural import FittedNetwork


@dataclass(frozen=True)
class SingularValues(MLP):
    """Options: as ``mlp``."""

    name: ClassVar[str] = "svd"
    formula: ClassVar[str] = "MLP(σ₁ … σ_r of every site)"
    reference: ClassVar[str] = "MLP + SVD of Learning on LoRAs (arXiv 2410.04207)"
    invariance: ClassVar[Invariance] = "GL(r)"
    rank_policy: ClassVar[RankPolicy] = "any"

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """``x`` [n, sites · rank]: as many singular values as the largest trained rank, zeros where there are fewer.

        Values beyond that rank are dropped.
        """
        rows: list[NDArray[Any]] = []
        for block in blocks_of(samples, structure):
            parts: list[NDArray[Any]] = []
            for stack in network_stacks(block, structure):
                S = stack.svd.S[..., : structure.rank]
                missing = structure.rank - S.shape[-1]
                parts.append(np.pad(S, [(0, 0), (0, 0), (0, missing)]).reshape(len(block), -1))
            rows.append(np.concatenate(parts, axis=1))
            if advance is not None:
                advance(len(block))
        return {"x": np.concatenate(rows)}

    def contributions(self, fitted: FittedModel, adapter: Adapter, structure: Structure) -> Contributions:
        """Gradient: σ ∂f/∂σ of every singular value."""
        inputs = self.inputs([Sample(lambda: adapter, {})], structure)
        gradients = cast("FittedNetwork", fitted).gradients(inputs)
        terms = np.stack([(gradient["x"] * inputs["x"])[0] for gradient in gradients], axis=-1)
        rows = terms.reshape(len(structure.sites), structure.rank, -1)
        directions = dict(zip(ordered_sites(structure), rows, strict=True))
        return Contributions("gradient", {s: part.sum(axis=0) for s, part in directions.items()}, {}, directions, None)


MODEL = SingularValues
