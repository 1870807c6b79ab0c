"""The dtypes that adapters are written in, by name."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.errors import AdapterError

_NAMES = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2")


def floating_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype of that name, those of ml-dtypes included.

    >>> floating_dtype("bfloat16").itemsize
    2

    Raises:
        AdapterError: where it is no floating dtype that files of adapters hold.
    """
    known: Any = getattr(ml_dtypes, dtype, dtype) if isinstance(dtype, str) else dtype
    try:
        found = np.dtype(known)
    except TypeError:
        found = None
    if found is None or found.name not in _NAMES:
        raise AdapterError("no such dtype for an adapter", expected=", ".join(_NAMES), found=ascii(str(dtype))[:40])
    return found


def cast_to(tensor: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """The tensor in ``dtype``, rounded once.

    Raises:
        AdapterError: where a finite value is too large for it.
    """
    known = floating_dtype(dtype)
    with np.errstate(over="ignore"):
        result = tensor.astype(known)
    is_finite = bool(np.isfinite(tensor.astype(np.float64)).all())
    if is_finite and not bool(np.isfinite(result.astype(np.float64)).all()):
        raise AdapterError("a value is too large for the dtype asked for", found=known.name)
    return result
