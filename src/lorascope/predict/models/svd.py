"""SVD: an MLP on the singular values of every site. Invariant, and blind to all directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.blocks import blocks_of
from lorascope.predict.model import Inputs, Invariance, RankPolicy, Sample, Structure
from lorascope.predict.models.mlp import MLP
from lorascope.symmetry import stack_adapters


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
            for stack in stack_adapters(block, sites=list(structure.sites)):
                S = stack.svd.S[..., : structure.rank]
                missing = structure.rank - S.shape[-1]
                parts.append(np.pad(S, [(0, 0), (0, 0), (0, missing)]).reshape(len(block), -1))
            rows.append(np.concatenate(parts, axis=1))
            if advance is not None:
                advance(len(block))
        return {"x": np.concatenate(rows)}


MODEL = SingularValues
