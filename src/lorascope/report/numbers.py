"""Numbers for people."""

from __future__ import annotations

import math

DASH = "–"
"""In the place of a number that is not defined."""


def number_as_text(value: float, places: int) -> str:
    """With so many places, a dash where it is not finite.

    >>> number_as_text(0.12345, 3), number_as_text(float("nan"), 3)
    ('0.123', '–')
    """
    return f"{value:.{places}f}" if math.isfinite(value) else DASH
