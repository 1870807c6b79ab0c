"""BEFT: only the bias of a layer is trained.

    ΔW = 0          Δbias = b          b [1, out]

Source: https://arxiv.org/abs/2509.15974; https://github.com/huggingface/peft, src/peft/tuners/beft/layer.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Dense
from lorascope.formats.parametrisation import Parametrisation, Parts


class BEFT(Dense):
    """ΔW = 0, Δbias = b."""

    kind: ClassVar[str] = "beft"

    @property
    def rank(self) -> int:
        """0."""
        return 0

    def norm(self) -> float:
        """0."""
        return 0.0

    def spectrum(self) -> NDArray[np.float64]:
        """No singular values."""
        return np.zeros(0, np.float64)

    def _formed(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        return np.zeros(self.shape, dtype)


def build_beft(parts: Parts) -> BEFT:
    """The update of one site from the role bias.

    Raises:
        AdapterError: where it is not one row.
    """
    bias = parts.tensor("bias", 1, None)
    return BEFT(stored=parts.named("bias"), keys=parts.keys, shape=(bias.shape[1], -1), dim=0, bias=bias.reshape(-1))


PARAMETRISATION = Parametrisation(
    name="beft",
    title="BEFT",
    formula="ΔW = 0, Δbias = b",
    reference="https://arxiv.org/abs/2509.15974",
    exactness="dense",
    build=build_beft,
    defaults="no scale",
    oracles=("peft",),
)
