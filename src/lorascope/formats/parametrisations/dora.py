"""DoRA: a low-rank change of direction, and a magnitude for each row (or column) of the weight.

    W → m ∘ (W + ΔV) / ‖W + ΔV‖          norm of each row (axis "out") or of each column (axis "in")

ΔV is any additive update, mostly scale · B · A. A convolution's rows are its filters. PEFT, MLX and LyCORIS with
``wd_on_out`` take the output axis, older LyCORIS files the input axis; the shape of m tells which.

Source: Liu et al., https://arxiv.org/abs/2402.09353; https://github.com/huggingface/peft, src/peft/tuners/lora/dora.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import InPlace, Update
from lorascope.adapter.rows import row_blocks
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts, built


@dataclass(frozen=True, eq=False, kw_only=True)
class DoRA(InPlace):
    """W → m ∘ (W + ΔV) / ‖W + ΔV‖.

    Args:
        inner: ΔV, an update that needs no base.
        axis: whether m has one entry for each output or for each input.
    """

    kind: ClassVar[str] = "dora"
    inner: Update
    axis: Literal["out", "in"] = "out"

    def rescaled(self, scale: float) -> DoRA:
        """The same update with another scale of ΔV."""
        inner = self.inner.rescaled(scale)
        return replace(self, scale=inner.scale, inner=inner)

    def _move(self, weight: NDArray[Any]) -> None:
        self.inner.add_to(weight)
        blocks = list(row_blocks(weight.shape))
        magnitude = self.part("magnitude", weight.dtype).reshape(-1)
        if self.axis == "out":
            lengths = np.concatenate([np.linalg.norm(weight[block], axis=1) for block in blocks])
            ratio = _ratio(magnitude, lengths)[:, None]
            for block in blocks:
                weight[block] *= ratio[block]
            return
        squares = np.zeros(weight.shape[1], weight.dtype)
        for block in blocks:
            squares += np.square(weight[block]).sum(axis=0)
        channels = self.kernel[0] if self.kernel else len(squares)  # the input axis of a convolution
        ratio = _ratio(magnitude, np.sqrt(squares.reshape(channels, -1).sum(axis=1)))
        weight *= np.repeat(ratio, len(squares) // channels)


def _ratio(magnitude: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any]:
    """m/‖·‖; a row of zeros stays zero."""
    if magnitude.shape != lengths.shape:
        raise AdapterError(
            "the magnitude does not fit the base weight", expected=f"{magnitude.size} values", found=lengths.size
        )
    return np.divide(magnitude, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def decorated(inner: Update, magnitude: NDArray[Any], key: str, site: str) -> DoRA:
    """DoRA around an additive update, the axis told by the shape of the magnitude.

    A magnitude [1, in] or [1, channels, 1, …] lies on the input axis; all others, the flat one included, on the output.

    Raises:
        AdapterError: where it fits neither axis, or the inner update is itself relative to the base.
    """
    if inner.needs == "base weight":
        raise AdapterError("a magnitude around an update that needs the base weight", key=site, found=inner.kind)
    out, in_ = inner.shape
    channels = inner.kernel[0] if inner.kernel else in_
    is_column = magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] > 1
    is_on_input = is_column and magnitude.size in (in_, channels) and not (magnitude.size == out and _is_out(magnitude))
    if not is_on_input and magnitude.size != out:
        raise AdapterError(
            f"{key} fits neither axis of the update",
            key=site,
            expected=f"{out} values, or {channels} as one row",
            found=list(magnitude.shape),
        )
    return DoRA(
        stored={**inner.stored, "magnitude": magnitude},
        keys={"magnitude": key},
        shape=inner.shape,
        dim=inner.dim,
        scale=inner.scale,
        alpha=inner.alpha,
        layer=inner.layer,
        kernel=inner.kernel,
        is_transposed=inner.is_transposed,
        bias=inner.bias,
        is_bias_whole=inner.is_bias_whole,
        inner=inner,
        axis="in" if is_on_input else "out",
    )


def _is_out(magnitude: NDArray[Any]) -> bool:
    """Whether the values lie on axis 1 of a convolution's or embedding's broadcast shape, as PEFT keeps them."""
    return magnitude.ndim > 2 and magnitude.shape[1] == magnitude.size


def build_dora(parts: Parts) -> DoRA:
    """The update of one site from the roles B, A and magnitude.

    Raises:
        AdapterError: where the shapes do not fit.
    """
    magnitude = parts.tensor("magnitude")
    key = parts.keys.get("magnitude", "magnitude")
    return decorated(built("lora", parts), magnitude, key, parts.site)


PARAMETRISATION = Parametrisation(
    name="dora",
    title="DoRA",
    formula="W → m ∘ (W + scale · B · A) / ‖W + scale · B · A‖",
    reference="https://arxiv.org/abs/2402.09353",
    exactness="relative to the base weight",
    build=build_dora,
    defaults="m on the output axis",
    oracles=("peft", "lycoris-lora"),
)
