"""LoCon with a Tucker core: a convolution as a 1×1 convolution, a small one, and a 1×1 convolution.

    ΔW[i,j,k] = scale · Σ B[i,m] · mid[m,n,k] · A[n,j]      B [out, m, 1…]   mid [m, n, *kernel]   A [n, channels, 1…]

    as one product:  B, and A'[m] = Σₙ mid[m,n] A[n], of the rank of B

Without a core a LoCon is a plain LoRA of a convolution.

Source: https://github.com/KohakuBlueleaf/LyCORIS, lycoris/modules/locon.py.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Expanded
from lorascope.adapter.widening import check_room
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations.loha import convolution_layer


class LoCon(Expanded):
    """ΔW = scale · B · (mid · A)."""

    kind: ClassVar[str] = "locon"

    @property
    def rank(self) -> int:
        """The columns of B."""
        return int(self.stored["B"].shape[1])

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        up, mid, down = (self.part(role, dtype) for role in ("B", "mid", "A"))
        core = mid.reshape(*mid.shape[:2], -1)
        A = np.einsum("mnk,nj->mjk", core, down.reshape(down.shape[:2]))
        return up.reshape(up.shape[:2]), A.reshape(self.rank, -1)


def build_locon(parts: Parts) -> LoCon:
    """The update of one site from the roles B, mid and A.

    Raises:
        AdapterError: where they do not make a product, or their product has no room.
    """
    up, mid, down = parts.tensor("B"), parts.tensor("mid"), parts.tensor("A")
    kernel = mid.shape[2:]
    fits = (
        up.ndim >= 2
        and down.ndim >= 2
        and math.prod(up.shape[2:]) == math.prod(down.shape[2:]) == 1
        and mid.shape[:2] == (up.shape[1], down.shape[0])
    )
    if not fits:
        raise AdapterError(
            "B, mid and A do not make a product",
            key=parts.site,
            expected="B [out, m, 1, 1], mid [m, n, …], A [n, channels, 1, 1]",
            found=f"{list(up.shape)}, {list(mid.shape)}, {list(down.shape)}",
        )
    layer = convolution_layer(kernel, parts)
    check_room(up.shape[1], down.shape[1], *kernel, what="a Tucker core", key=parts.site)
    scale = parts.scale_of(down.shape[0])
    out = up.shape[0]
    return LoCon(
        stored=parts.named("B", "mid", "A"),
        keys={role: key for role, key in parts.keys.items() if role in ("B", "mid", "A")},
        shape=(out, down.shape[1] * math.prod(kernel)),
        dim=down.shape[0],
        scale=scale.scale,
        alpha=scale.alpha,
        layer=layer,
        kernel=(down.shape[1], *kernel),
        bias=parts.tensor("bias", out) if "bias" in parts else None,
    )


PARAMETRISATION = Parametrisation(
    name="locon",
    title="LoCon (Tucker)",
    formula="ΔW = scale · B · (mid · A)",
    reference="https://github.com/KohakuBlueleaf/LyCORIS",
    exactness="low rank, expanded",
    build=build_locon,
    defaults="scale = alpha/rows of A",
    oracles=("lycoris-lora",),
)
