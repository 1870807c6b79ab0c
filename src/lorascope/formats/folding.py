"""A scale that a format has no place for goes into a factor: B' = scale · B, and the bias with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import LowRank
from lorascope.errors import AdapterError
from lorascope.formats.dtypes import cast_to


def times(tensor: NDArray[Any], factor: float, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """The product, rounded once to ``dtype`` or, if None, to the dtype of the tensor; exact for powers of two.

    Raises:
        AdapterError: where a product is too large for the dtype.
    """
    kind = tensor.dtype if dtype is None else dtype
    if factor == 1.0:
        return cast_to(tensor, kind)
    return cast_to(wide_product(tensor, factor), kind)


def wide_product(tensor: NDArray[Any], factor: float) -> NDArray[Any]:
    """The product in float64.

    Raises:
        AdapterError: where a product of a finite number is beyond its range.
    """
    wide = tensor.astype(np.float64)
    with np.errstate(over="ignore"):
        product = wide * factor
    if bool((np.isinf(product) & np.isfinite(wide)).any()):
        raise AdapterError("a value times the scale is beyond the range of float64", found=f"scale {factor:g}")
    return product


def widened_times(tensor: NDArray[Any], factor: float) -> NDArray[Any]:
    """The product in the dtype of the tensor where it is exact there, else in float32 or, of float64, rounded once.

    >>> one = np.ones(1, np.float16)
    >>> widened_times(one, 0.5).dtype.name, widened_times(one, 0.3).dtype.name, widened_times(one, 1e6).dtype.name
    ('float16', 'float32', 'float32')

    Raises:
        AdapterError: where a product is too large for float32.
    """
    wide = wide_product(tensor, factor)
    with np.errstate(over="ignore"):
        narrow = wide.astype(tensor.dtype)
    if tensor.dtype == np.float64 or bool((narrow.astype(np.float64) == wide).all()):
        return narrow
    return cast_to(wide, np.float32)


def unscaled(update: LowRank, dtype: DTypeLike | None = None) -> LowRank:
    """The same update with scale 1, its factors and bias in ``dtype`` or, if None, as stored.

    >>> update = unscaled(LowRank(np.ones((2, 1)), np.ones((1, 2)), scale=0.5))
    >>> update.scale, update.B.tolist()
    (1.0, [[0.5], [0.5]])

    Raises:
        AdapterError: where a product is too large for the dtype.
    """
    A = update.A if dtype is None else cast_to(update.A, dtype)
    factor = 1.0 if update.is_bias_whole else update.scale
    bias = None if update.bias is None else times(update.bias, factor, dtype)
    B = times(update.B, update.scale, dtype)
    return replace(update, B=B, A=A, bias=bias, scale=1.0, scalar=1.0, alpha=None)
