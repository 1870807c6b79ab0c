"""The dtypes that adapters are written in, by name."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

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
