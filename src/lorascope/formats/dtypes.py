"""The dtypes that adapters are stored in, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.errors import AdapterError

_NAMES = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2")


STORED: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
        "C64": np.complex64,
    }.items()
}
"""The dtypes of safetensors files by the names that the format gives them."""


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name that the format gives to a dtype.

    >>> dtype_name(np.dtype("float16"))
    'F16'

    Raises:
        AdapterError: where it has none.
    """
    for name, known in STORED.items():
        if known == dtype:
            return name
    raise AdapterError("safetensors has no such dtype", expected=", ".join(STORED), found=dtype.name)


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
