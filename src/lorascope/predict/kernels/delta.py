"""The direction of ΔW itself: sees both sides and the sign, and with them the noise that A started from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.features.feature import Change
from lorascope.predict.kernel import Tokens
from lorascope.predict.kernels._side import shares


@dataclass(frozen=True)
class DeltaKernel:
    """ΔW / ‖ΔW‖, projected on both sides."""

    name: ClassVar[str] = "delta"
    formula: ClassVar[str] = "P ΔW Qᵀ / ‖ΔW‖_F"
    reference: ClassVar[str] = "the Dense model of Learning on LoRAs (arXiv 2410.04207), as a kernel"
    cost: ClassVar[str] = "h h′ k"
    sees: ClassVar[frozenset[Change]] = frozenset({"sign", "rotate out", "rotate in"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"scale"})
    lengths: ClassVar[tuple[float, ...]] = ()
    is_rank_stable: ClassVar[bool] = True

    def __call__(self, tokens: Tokens) -> NDArray[Any]:
        scaled = tokens.left * np.sqrt(shares(tokens.S))[:, None, :]
        across = np.ascontiguousarray(np.swapaxes(tokens.right, -1, -2))  # as in ``weighted_side``
        return (scaled @ across).reshape(len(scaled), -1)

    def directions(self, tokens: Tokens) -> NDArray[Any]:
        """What each singular direction adds to φ, [n, k, d]."""
        left = np.swapaxes(tokens.left, -1, -2) * np.sqrt(shares(tokens.S))[..., None]
        right = np.swapaxes(tokens.right, -1, -2)
        return (left[..., :, None] * right[..., None, :]).reshape(*left.shape[:2], -1)


KERNEL = DeltaKernel
