"""Full difference: the change of a weight as it is, of any rank; for a norm layer a vector.

    ΔW = diff [out, in], [out, channels, *kernel] or [out]        Δbias = diff_b [out]

LyCORIS's ``full`` and ``norm`` and the whole differences in ComfyUI's files; there is no scale.

Source: https://github.com/KohakuBlueleaf/LyCORIS, lycoris/modules/full.py and norms.py.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Dense, Layer
from lorascope.adapter.rows import Rows
from lorascope.adapter.widening import widened
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations.loha import convolution_layer


class Full(Dense):
    """ΔW = diff; zero where only the bias changes."""

    kind: ClassVar[str] = "full"

    def transposed(self, is_transposed: bool) -> Self:
        """Refused where it would turn the difference, which is stored in the layout of the base.

        Raises:
            AdapterError: where the base is stored the other way.
        """
        if is_transposed != self.is_transposed:
            where = "[in, out]" if is_transposed else "[out, in]"
            raise AdapterError(f"the base stores this weight as {where}", key=self._key, found=self.kind)
        return self

    @property
    def rank(self) -> int:
        """min(out, in); 0 where only the bias changes."""
        return min(self.shape) if "diff" in self.stored else 0

    def norm(self) -> float:
        """‖ΔW‖_F in float64."""
        return super().norm() if "diff" in self.stored else 0.0

    def spectrum(self) -> NDArray[np.float64] | None:
        """The singular values of ΔW; none where only the bias changes."""
        return super().spectrum() if "diff" in self.stored else np.zeros(0, np.float64)

    def rows(self, dtype: DTypeLike = np.float32) -> Rows:
        """What forms rows of ΔW, widened when they are asked for."""
        if "diff" not in self.stored:
            return super().rows(dtype)
        matrix = self.stored["diff"].reshape(self.stored["diff"].shape[0], -1)
        matrix, key = matrix.T if self.is_transposed else matrix, self.keys.get("diff", "diff")
        return lambda block: self.scale * widened(matrix[block], key, dtype)

    def _formed(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        if "diff" not in self.stored:
            return np.zeros(self.shape, dtype)
        matrix = self.part("diff", dtype).reshape(self.stored["diff"].shape[0], -1)
        matrix = matrix.T if self.is_transposed else matrix
        return matrix if self.scale == 1.0 else self.scale * matrix


def build_full(parts: Parts) -> Full:
    """The update of one site from the roles diff and diff_b, one of which may be missing.

    Raises:
        AdapterError: where the shapes do not fit one another.
    """
    scale = parts.scale_of(0)
    layer: Layer = parts.layer
    kernel: tuple[int, ...] = ()
    is_transposed = False
    if "diff" in parts:
        diff = parts.tensor("diff")
        if diff.ndim > 2:
            layer, kernel = convolution_layer(diff.shape[2:], parts), tuple(diff.shape[1:])
        elif diff.ndim == 1:
            layer = "norm"
        elif diff.ndim == 0:
            raise AdapterError("a difference without axes", key=parts.site)
        is_transposed = diff.ndim == 2 and (parts.is_transposed or layer == "embedding")
        out, in_ = diff.shape[0], diff.size // diff.shape[0]
        shape = (in_, out) if is_transposed else (out, in_)
    else:
        shape = (parts.tensor("diff_b", None).shape[0], -1)
    return Full(
        stored=parts.named("diff", "diff_b"),
        keys={role: key for role, key in parts.keys.items() if role in ("diff", "diff_b")},
        shape=shape,
        dim=max(min(shape), 0),
        scale=scale.scale,
        alpha=scale.alpha,
        layer=layer,
        kernel=kernel,
        is_transposed=is_transposed,
        bias=parts.tensor("diff_b", shape[0]) if "diff_b" in parts else None,
        is_bias_whole=True,
    )


PARAMETRISATION = Parametrisation(
    name="full",
    title="full difference",
    formula="ΔW = diff, Δbias = diff_b",
    reference="https://github.com/KohakuBlueleaf/LyCORIS",
    exactness="dense",
    build=build_full,
    oracles=("lycoris-lora",),
)
