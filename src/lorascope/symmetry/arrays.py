"""The border to the array libraries: one numeric code for NumPy and PyTorch, by the array API standard."""

from typing import Any

import array_api_compat as _array_api_compat
import numpy as np

array_api_compat: Any = _array_api_compat  # its own annotations are partly unknown to the type checker

Array = Any
"""A NumPy array or a PyTorch tensor."""


def namespace(*arrays: Array) -> Any:
    """The array API namespace that all arrays share.

    >>> import numpy as np
    >>> namespace(np.ones(2)).__name__
    'array_api_compat.numpy'
    """
    return array_api_compat.array_namespace(*arrays)


def transpose(array: Array) -> Array:
    """The last two axes swapped."""
    return namespace(array).matrix_transpose(array)


def to_float64(array: Array) -> Array:
    """The array in float64, for r × r cores."""
    xp = namespace(array)
    return xp.astype(array, xp.float64, copy=False)


def eps(array: Array) -> float:
    """The rounding unit of the array's dtype."""
    return float(namespace(array).finfo(array.dtype).eps)


def default_rtol(B: Array, A: Array) -> float:
    """Below this share of σ₁ a singular value of B A is rounding: eps · max(out, in), eps that of the stored dtype."""
    return eps(B) * max(B.shape[-2], A.shape[-1])


def like(value: Any, reference: Array) -> Array:
    """``value`` (a number or an array) as an array of the library, dtype and device of ``reference``."""
    xp = namespace(reference)
    if array_api_compat.is_array_api_obj(value) and not isinstance(value, np.ndarray | np.generic):
        return xp.astype(value, reference.dtype, copy=False)
    return xp.asarray(value, dtype=reference.dtype, device=array_api_compat.device(reference))


def scaled(B: Array, scale: Any) -> Array:
    """scale · B, with scale a number or an array over the leading axes of B."""
    factor = like(scale, B)
    return B * factor[..., None, None]
