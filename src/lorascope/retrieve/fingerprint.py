"""A short text that near-equal adapters share but for neighbouring letters: to compare adapters without their files.

    ls1.<round(32 log₂ ‖ΔW‖)>.<16 letters>       letter k: round(2 p_kᵀ ΔW q_k / ‖ΔW‖), from −15 to 15 as 0 … 9 a … u

The products are the diagonal of the sketch, times h. If ‖D‖ ≤ ρ‖ΔW‖, then |p_kᵀ D q_k| > t ρ‖ΔW‖ with a probability
of at most 2 e^(−λt) (1 − λ²)^(−1/2) for any λ < 1: 3e-8 at t = 20. Dividing by another norm moves a product by as much
once more. So cells of width 1/2 hold every ρ up to 1/(4 · 20) = 1.25 %: letters differ by at most 1, but for one pair
of adapters in 10^6.

Rounding the factors to a dtype of unit u moves ΔW by ρ ≤ (2u + u²) ‖B‖‖A‖/‖ΔW‖, u = 2⁻⁸ for bfloat16 and 2⁻¹¹ for
float16; errors that are independent, in balanced factors, by about 0.57 u: 0.2 % for bfloat16.
"""

from __future__ import annotations

import math
import re

import numpy as np

from lorascope.errors import LorascopeError
from lorascope.retrieve.sketch import SIZE, Sketch

WIDTH = 0.5
"""Of a cell, where ‖ΔW‖ is 1."""

HELD = WIDTH / 40
"""ρ: the relative distance up to which fingerprints are neighbours."""

_LETTERS = "0123456789abcdefghijklmnopqrstu"
_ZERO = "ls1.zero"
_TEXT = re.compile(r"ls1\.(-?\d{1,6})\.([0-9a-u]{16})", re.ASCII)


def fingerprint(sketch: Sketch) -> str:
    """The text of a sketch of size 16.

    >>> fingerprint(Sketch(np.zeros(256), 0.0))
    'ls1.zero'
    >>> fingerprint(Sketch(np.full(256, 0.25), 4.0))
    'ls1.64.hhhhhhhhhhhhhhhh'
    """
    if sketch.norm == 0:
        return _ZERO
    diagonal = sketch.values.reshape(SIZE, SIZE).diagonal() * SIZE / sketch.norm
    cells = np.clip(np.rint(diagonal / WIDTH), -15, 15).astype(int) + 15
    return f"ls1.{round(32 * math.log2(sketch.norm))}." + "".join(_LETTERS[cell] for cell in cells)


def are_neighbours(one: str, other: str) -> bool:
    """Whether adapters of these fingerprints may be the same: every cell is the same or one next to it.

    Raises:
        LorascopeError: where one is no fingerprint.

    >>> are_neighbours("ls1.64.hhhhhhhhhhhhhhhh", "ls1.65.hhhhhihhhhhhhhhg")
    True
    >>> are_neighbours("ls1.64.hhhhhhhhhhhhhhhh", "ls1.64.jhhhhhhhhhhhhhhh")
    False
    """
    left, right = cells_of(one), cells_of(other)
    if left is None or right is None:
        return left is right
    return bool((np.abs(left - right) <= 1).all())


def cells_of(text: str) -> np.ndarray | None:
    """The 17 whole numbers of a fingerprint, None of that of a zero update."""
    if text == _ZERO:
        return None
    match = _TEXT.fullmatch(text)
    if match is None:
        raise LorascopeError("is no fingerprint", key=text[:80], expected="such as ls1.64.hhhhhhhhhhhhhhhh")
    return np.array([int(match[1]), *map(_LETTERS.index, match[2])])
