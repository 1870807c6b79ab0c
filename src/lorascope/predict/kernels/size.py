"""How far each site went, as its nuclear norm: of the ways to say so, the one that moved least when the rank did.

On digits-vit (alpha 8 at every rank), trained at rank 4 and asked at ranks 2 and 8, accuracies told by ‖ΔW‖_F or σ₁
were off by a third of their spread or more; told by Σ σ they were not off in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.features.feature import Change
from lorascope.features.invariants.log_norm import FLOOR
from lorascope.predict.kernel import Tokens


@dataclass(frozen=True)
class SizeKernel:
    """Nuclear norms of all sites together."""

    name: ClassVar[str] = "size"
    formula: ClassVar[str] = "exp(−‖z − z′‖² / (2 ℓ² D)), z: log ‖ΔW‖_* of all sites"
    reference: ClassVar[str] = "lorascope; the nuclear norm as a kernel"
    cost: ClassVar[str] = "k"
    sees: ClassVar[frozenset[Change]] = frozenset({"scale"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"sign", "rotate out", "rotate in"})
    lengths: ClassVar[tuple[float, ...]] = (0.3, 0.7, 1.5, 4.0)
    is_rank_stable: ClassVar[bool] = True

    def __call__(self, tokens: Tokens) -> NDArray[Any]:
        return np.log(tokens.S.sum(axis=-1, keepdims=True) + FLOOR)


KERNEL = SizeKernel
