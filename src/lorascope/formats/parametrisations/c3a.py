"""C3A: ΔW is made of circulant blocks, each from one kernel.

    ΔW[p·b + k, q·b + t] = w_pq[(t − k) mod b] / in          kernel w [out/b, in/b, b]

Source: Chen et al., https://arxiv.org/abs/2407.19342; https://github.com/huggingface/peft, src/peft/tuners/c3a/utils.py
(there by way of Fourier transforms; the sum over frequencies is the index above).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Dense
from lorascope.formats.parametrisation import Parametrisation, Parts


class C3A(Dense):
    """ΔW[p·b + k, q·b + t] = w_pq[(t − k) mod b] / in."""

    kind: ClassVar[str] = "c3a"

    def _formed(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        kernel = self.part("kernel", dtype)
        steps = np.arange(self.dim)
        blocks = kernel[:, :, (steps[None, :] - steps[:, None]) % self.dim]
        return blocks.swapaxes(1, 2).reshape(self.shape) / self.shape[1]


def build_c3a(parts: Parts) -> C3A:
    """The update of one site from the role kernel.

    Raises:
        AdapterError: where the kernel has not three axes.
    """
    rows, columns, size = parts.tensor("kernel", None, None, None).shape
    return C3A(stored=parts.named("kernel"), keys=parts.keys, shape=(rows * size, columns * size), dim=size)


PARAMETRISATION = Parametrisation(
    name="c3a",
    title="C3A",
    formula="ΔW = blocks of circulants / in",
    reference="https://arxiv.org/abs/2407.19342",
    exactness="dense",
    build=build_c3a,
    defaults="no scale",
    oracles=("peft",),
)
