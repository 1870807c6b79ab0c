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

    >>> counted(1, "adapter"), counted(2, "adapter")
    ('1 adapter', '2 adapters')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def be(count: int) -> str:
    """What is said of so many things.

    >>> f"{counted(1, 'site')} {be(1)} changed, {counted(2, 'site')} {be(2)} not"
    '1 site is changed, 2 sites are not'
    """
    return "is" if count == 1 else "are"
