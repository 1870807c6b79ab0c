"""BAT (Bone's "block affine transformation"): each r × r block of the weight is moved by a block of its row.

    W_pq → W_pq + W_pq · D_p + D_p          W_pq [r, r], p over out/r, q over in/r; D [out/r, r, r]

The variant of MiSS and Bone with ``init_weights`` "bat".

Source: Kang and Yin, https://arxiv.org/abs/2409.15371; https://github.com/huggingface/peft,
``get_delta_weight`` in src/peft/tuners/miss/layer.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

from numpy.typing import NDArray

from lorascope.adapter import Relative
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts


class BAT(Relative):
    """W_pq → W_pq + W_pq · D_p + D_p."""

    kind: ClassVar[str] = "bat"

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        blocks = self.part("block", base.dtype)
        count, size, _ = blocks.shape
        if base.shape[1] % size:
            raise AdapterError(
                "the update does not fit the base weight",
                key=self._key,
                expected=f"an input axis that {size} divides",
                found=list(base.shape),
            )
        parts = base.reshape(count, size, -1, size).swapaxes(1, 2)
        moved = parts + parts @ blocks[:, None] + blocks[:, None]
        return moved.swapaxes(1, 2).reshape(base.shape)


def build_bat(parts: Parts) -> BAT:
    """The update of one site from the role block.

    Raises:
        AdapterError: where the blocks are not square.
    """
    count, size, _ = parts.tensor("block", None, None, None).shape
    parts.tensor("block", count, size, size)
    return BAT(stored=parts.named("block"), keys=parts.keys, shape=(count * size, -1), dim=size)


PARAMETRISATION = Parametrisation(
    name="bat",
    title="MiSS (Bone), block affine",
    formula="W_pq → W_pq + W_pq · D_p + D_p, in blocks r × r",
    reference="https://arxiv.org/abs/2409.15371",
    exactness="relative to the base weight",
    build=build_bat,
    defaults="no scale",
    oracles=("peft",),
)
