"""A scale multiplied into a factor, so that alpha equals the rank; worked out when the site is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Expanded, LowRank, Update
from lorascope.errors import AdapterError
from lorascope.formats.folding import times, unscaled
from lorascope.formats.parametrisations.dora import DoRA


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaleFolded(Expanded):
    """ΔW = (scale · B) · A, with scale · B rounded once to the dtype of B.

    Args:
        inner: the update with its scale.
    """

    kind: ClassVar[str] = "lora"
    inner: LowRank | Expanded

    @property
    def rank(self) -> int:
        """That of the update inside."""
        return self.inner.rank

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        plain = self.as_low_rank()
        return plain.B.astype(dtype), plain.A.astype(dtype)

    def outline(self) -> LowRank:
        """``as_low_rank`` without its values.

        Raises:
            AdapterError: where the update inside has no factors.
        """
        inner = self.inner if isinstance(self.inner, LowRank) else self.inner.outline()
        return replace(inner, scale=1.0, alpha=None, scalar=1.0, bias=self.bias)

    def as_low_rank(self) -> LowRank:
        """The plain update of scale 1, its factors in the dtypes of the update inside.

        Raises:
            AdapterError: where a value of scale · B is too large for the dtype.
        """
        inner = self.inner if isinstance(self.inner, LowRank) else self.inner.as_low_rank()
        return replace(unscaled(inner), bias=self.bias)


def folded(update: Update) -> Update:
    """The update with its scale in B, so that the scale is 1.

    >>> update = folded(LowRank(np.ones((4, 2)), np.ones((2, 3)), scale=0.5))
    >>> update.scale, update.factors().B[0, 0].item()
    (1.0, 0.5)

    Raises:
        AdapterError: where its kind has no such factor.
    """
    if isinstance(update, LowRank | Expanded):
        bias = update.bias
        if bias is not None and not update.is_bias_whole:
            bias = times(bias, update.scale)
        return ScaleFolded(
            inner=update,
            stored=update.stored,
            keys=update.keys if isinstance(update, Expanded) else dict(zip("BA", update.keys, strict=True)),
            shape=update.shape,
            dim=max(update.rank, update.dim),
            layer=update.layer,
            kernel=update.kernel,
            is_transposed=update.is_transposed,
            bias=bias,
            is_bias_whole=update.is_bias_whole,
        )
    if isinstance(update, DoRA):
        inner = folded(update.inner)
        return replace(update, inner=inner, scale=1.0, alpha=None, bias=inner.bias)
    raise AdapterError(f"the scale of {update.kind} cannot be folded into one factor")
