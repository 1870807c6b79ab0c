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


def counted(count: int, noun: str) -> str:
    """A number of things that take an s where they are not one.

    >>> counted(1, "adapter"), counted(1200, "adapter")
    ('1 adapter', '1,200 adapters')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
