"""Blockwise rounding to few bits: one step for each run of 64 numbers, codes packed without gaps.

    d = max |x| / L of a block,  q = round(x / d) ∈ [−L, L],  x' = d q        L = 2^(bits−1) − 1: 127 or 7
    |x − x'| ≤ d / 2

Steps are float32, rounded up, so that no code falls outside of ±L. Codes of four bits lie two in a byte, the first in
the low half. What is rounded should be balanced factors or cores: their entries, and so the error, do not depend on
the gauge, and no block mixes large with small numbers more than ΔW does.

Source: Dettmers et al. (2022), 8-bit optimizers via block-wise quantization, arXiv 2110.02861, section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import AdapterError, LorascopeError

BLOCK = 64
"""Numbers that share a step."""

BITS = (8, 4)
"""How many bits a code can have."""


@dataclass(frozen=True, eq=False)
class Quantised:
    """``codes``: bytes, int8 of eight bits and uint8 of four; ``steps``: float32 [⌈count / 64⌉]; ``count`` numbers."""

    codes: NDArray[Any]
    steps: NDArray[np.float32]
    count: int
    bits: int

    @property
    def nbytes(self) -> int:
        """Bytes of codes and steps."""
        return self.codes.nbytes + self.steps.nbytes


def sizes(count: int, bits: int) -> tuple[int, int]:
    """How many bytes of codes and how many steps ``count`` numbers have.

    >>> sizes(65, 4)
    (33, 2)
    """
    return -(-count * bits // 8), -(-count // BLOCK)


def quantised(values: NDArray[Any], bits: int) -> Quantised:
    """Round numbers, in the order of the array in memory.

    Raises:
        LorascopeError: for another number of bits.
        AdapterError: where a number is not finite or too large for a step in float32.

    >>> codes = quantised(np.array([7.0, -3.2]), 4)
    >>> codes.codes.tolist(), codes.steps.tolist(), restored(codes).tolist()
    ([215], [1.0], [7.0, -3.0])
    """
    if bits not in BITS:
        raise LorascopeError("no such number of bits", key="quantise", expected="8 or 4", found=bits)
    flat = np.asarray(values, np.float64).reshape(-1)
    levels = _levels(bits)
    blocks = np.zeros((-(-flat.size // BLOCK), BLOCK))
    blocks.reshape(-1)[: flat.size] = flat
    largest = np.abs(blocks).max(axis=1, initial=0.0)
    with np.errstate(over="ignore", under="ignore"):
        steps = (largest / levels).astype(np.float32)
        is_low = steps.astype(np.float64) * levels < largest
        steps = np.where(is_low, np.nextafter(steps, np.float32(np.inf)), steps).astype(np.float32)
    if not bool(np.isfinite(steps).all()):
        raise AdapterError("a number is not finite, or too large to be rounded to few bits", found=float(largest.max()))
    divisors = np.where(steps > 0, steps.astype(np.float64), 1.0)[:, None]
    codes = np.rint(blocks / divisors).astype(np.int8).reshape(-1)[: flat.size]
    return Quantised(codes if bits == 8 else _packed(codes), steps, flat.size, bits)


def restored(stored: Quantised) -> NDArray[np.float32]:
    """The numbers [count] that the codes mean, in float32.

    Raises:
        AdapterError: where there are more or fewer bytes or steps than numbers, or a step is not finite.
    """
    expected = sizes(stored.count, stored.bits)
    if (stored.codes.nbytes, stored.steps.size) != expected:
        raise AdapterError(
            "codes and steps do not fit the number of values",
            expected=f"{expected[0]} bytes and {expected[1]} steps",
            found=f"{stored.codes.nbytes} and {stored.steps.size}",
        )
    steps = stored.steps.astype(np.float32)
    if not bool(np.isfinite(steps).all()) or bool((steps < 0).any()):
        raise AdapterError("a step is not a finite number of at least 0")
    codes = stored.codes if stored.bits == 8 else _unpacked(stored.codes)[: stored.count]
    with np.errstate(over="ignore"):
        values = codes.astype(np.float32) * np.repeat(steps, BLOCK)[: stored.count]
    if not bool(np.isfinite(values).all()):
        raise AdapterError("a number is beyond the range of float32")
    return values


def _levels(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def _packed(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two codes in a byte as two's complement, the first in the low half; an odd one out has a zero beside it."""
    halves = np.zeros(codes.size + codes.size % 2, np.uint8)
    halves[: codes.size] = codes.view(np.uint8) & 0xF
    return np.asarray(halves[0::2] | (halves[1::2] << 4), np.uint8)


def _unpacked(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    halves = np.empty(2 * codes.size, np.uint8)
    halves[0::2], halves[1::2] = codes & 0xF, codes >> 4
    return ((halves ^ 8).astype(np.int16) - 8).astype(np.int8)
