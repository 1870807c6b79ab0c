"""float16 widened by whole-number operations on all numbers at once; NumPy's own conversion takes one after another.

A float16 has a sign, 5 bits of exponent (bias 15) and 10 of mantissa; a float32 8 (bias 127) and 23. So

    value = float32 with the bits  sign · 0 0 0 · exponent · mantissa · 0…0   times 2^(127 − 15)

which is exact for every finite number, subnormal ones included. Infinities and NaN, whose exponent is 31, come out as
numbers of 2^16 and more, which no finite float16 is.

Of a subnormal float16 the first factor is a subnormal float32. A thread may be set to take those for zero
(``torch.set_flush_denormal``): NumPy's own conversion, which does not look at that, is then used instead.

    >>> import numpy as np
    >>> singles(np.array([1.5, -2.0**-24, 65504.0, np.inf], np.float16)).tolist()
    [1.5, -5.960464477539063e-08, 65504.0, 65536.0]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BEYOND = 2.0**16
"""The least absolute value that ``singles`` gives for what is not a finite number."""

_BITS = np.uint32(0x8FFFE000).astype(np.int32)
"""Where sign, exponent and mantissa are, after a shift by 13 that repeats the sign in the three bits between."""

_WIDE, _LEAST = np.float32(2.0**112), np.finfo(np.float32).smallest_subnormal


def singles(halves: NDArray[np.float16], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """float16 as float32, written to ``out`` where it is given; what is not finite as numbers of ``BEYOND`` or more."""
    result = np.empty(halves.shape, np.float32) if out is None else out
    if _are_subnormals_zero():
        np.copyto(result, halves)
        result[np.isnan(result)] = np.inf
        return result
    bits = result.view(np.int32)
    np.copyto(bits, halves.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _BITS, out=bits)
    return np.multiply(result, _WIDE, out=result)


def _are_subnormals_zero() -> bool:
    """Whether this thread takes subnormal float32 for zero."""
    return bool(_LEAST * _WIDE == 0)
