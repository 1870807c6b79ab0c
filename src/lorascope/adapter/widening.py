"""From the dtype of the file to that of a computation, and from two axes to the layout of the base weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter.half import BEYOND, singles
from lorascope.adapter.update import Layer, Update
from lorascope.errors import AdapterError

MAX_DENSE = 1 << 28
"""Numbers that one expanded matrix may have (1 GiB in float32); a file of kilobytes can declare far more."""

MAX_FACTORS = 1 << 25
"""Numbers that the two factors of one structured update may have when they are worked out (256 MiB in float64)."""

LARGE = 1 << 14
"""Entries of an array from which on a faster conversion is worth its call."""

_CONVOLUTIONS: Mapping[int, Layer] = {1: "conv1d", 2: "conv2d", 3: "conv3d"}


def widened(stored: NDArray[Any], key: str, dtype: DTypeLike) -> NDArray[Any]:
    """``stored`` in ``dtype``.

    Raises:
        AdapterError: where a value is NaN or infinite, or too large for ``dtype``.
    """
    array = converted(stored, np.dtype(dtype))
    if not bool(np.isfinite(array).all()):
        if stored.size > 1 and not any(stored.strides):
            raise AdapterError(
                f"the values of {key} were not fetched: only headers were read", hint="read the adapter in full"
            )
        raise AdapterError(
            f"non-finite value in {key}",
            expected=f"finite numbers in {np.dtype(dtype).name}",
            found=f"NaN or infinity ({stored.dtype.name})",
            hint="the adapter diverged in training or the file was damaged; get it again or drop it",
        )
    return array


def converted(stored: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """``stored.astype(dtype)``, many times faster where that goes number by number."""
    if stored.dtype == np.float16 and stored.size >= LARGE and dtype.char in "fd":
        array = singles(stored)
        if max(float(array.max()), -float(array.min())) < BEYOND:
            return array.astype(dtype, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        return stored.astype(dtype)


@cache
def name_of(dtype: np.dtype[Any]) -> str:
    """The name of a dtype; NumPy works it out anew each time, which counts over thousands of sites."""
    return dtype.name


def is_floating(tensor: NDArray[Any]) -> bool:
    """Whether the dtype is a real floating one, those of ml-dtypes included."""
    return name_of(tensor.dtype).startswith(("float", "bfloat"))


def scaled_bias(bias: NDArray[Any] | None, scale: float, key: str, dtype: DTypeLike) -> NDArray[Any] | None:
    """scale · bias in ``dtype``, None for None.

    Raises:
        AdapterError: where a value is not finite, or the product beyond the range of ``dtype``.
    """
    if bias is None:
        return None
    with np.errstate(over="ignore"):
        result = scale * widened(bias, f"the bias of {key}", dtype)
    if not bool(np.isfinite(result).all()):
        raise AdapterError("Δbias is beyond the range of the dtype", key=key, found=np.dtype(dtype).name)
    return result


def check_room(*axes: int, what: str = "ΔW", key: str | None = None, limit: int = MAX_DENSE) -> None:
    """Refuse to form a matrix of more than ``limit`` numbers.

    >>> check_room(1 << 20, 1 << 20)
    Traceback (most recent call last):
    lorascope.errors.AdapterError: ΔW is too large to be formed in full (expected at most 268435456 numbers, ...)
      hint: the update is still exact; ask for its norm, or for its factors where the rank is low
    """
    count = math.prod(axes)
    if count > limit:
        raise AdapterError(
            f"{what} is too large to be formed in full",
            key=key,
            expected=f"at most {limit} numbers",
            found=f"{' × '.join(str(axis) for axis in axes)} = {count}",
            hint="the update is still exact; ask for its norm, or for its factors where the rank is low",
            code="too-large",
        )


def resolved_axes(
    update: Update, base_shape: tuple[int, ...], key: str
) -> tuple[tuple[int, int], tuple[int, ...], Layer]:
    """Shape, kernel and layer of an update for a base weight of that shape.

    Raises:
        AdapterError: where the axes that are known do not fit.
    """
    if not base_shape:
        raise AdapterError("a base weight has at least one axis", key=key)
    out, *rest = base_shape
    in_ = math.prod(rest)
    if update.is_transposed and len(rest) == 1:
        out, in_ = in_, out
    for known, given in zip(update.shape, (out, in_), strict=True):
        if known not in (-1, given):
            raise AdapterError(
                "the update does not fit the base weight",
                key=key,
                expected=f"a weight of shape {list(update.base_shape)}",
                found=list(base_shape),
            )
    if len(base_shape) < 3:
        return (out, in_), update.kernel, update.layer
    return (out, in_), tuple(rest), _CONVOLUTIONS.get(len(rest) - 1, update.layer)


def laid_out(
    delta: NDArray[Any], kernel: tuple[int, ...] = (), *, is_transposed: bool = False, is_flat: bool = False
) -> NDArray[Any]:
    """A matrix [out, in] in the layout of the base weight: [out, *kernel], [in, out] or [out]."""
    if is_flat:
        return delta.reshape(-1)
    if kernel:
        return delta.reshape(delta.shape[0], *kernel)
    return delta.T if is_transposed else delta


def as_matrix(weight: NDArray[Any], *, is_transposed: bool = False) -> NDArray[Any]:
    """A base weight as a matrix [out, in]: the inverse of ``laid_out``."""
    if weight.ndim == 1:
        return weight.reshape(-1, 1)
    if weight.ndim > 2:
        return weight.reshape(weight.shape[0], -1)
    return weight.T if is_transposed else weight
