"""Checks of options, weights and numbers of adapters that several methods share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import LorascopeError


def check_share(name: str, value: float) -> None:
    """Refuse a share that is not in (0, 1].

    >>> check_share("density", 0.0)
    Traceback (most recent call last):
    ...
    lorascope.errors.LorascopeError: density: there is no such share (expected above 0, at most 1, found 0.0)
    """
    if not 0 < value <= 1:
        raise LorascopeError("there is no such share", key=name, expected="above 0, at most 1", found=value)


def check_tolerance(name: str, value: float) -> None:
    """Refuse a relative tolerance that is not in [0, 1)."""
    if not 0 <= value < 1:
        raise LorascopeError("there is no such tolerance", key=name, expected="at least 0, below 1", found=value)


def check_finite(name: str, value: float) -> None:
    """Refuse a factor that is not a finite number."""
    if not np.isfinite(value):
        raise LorascopeError("not a finite number", key=name, found=value)


def check_least(name: str, value: int, least: int) -> None:
    """Refuse a whole number below the least that makes sense."""
    if value < least:
        raise LorascopeError("too small", key=name, expected=f"at least {least}", found=value)


def check_two(method: str, count: int) -> None:
    """Refuse any number of adapters but two."""
    if count != 2:
        raise LorascopeError(f"{method} is defined for two adapters", expected=2, found=count)


def normalised(weights: NDArray[np.float64], method: str) -> NDArray[np.float64]:
    """The weights over their sum, which is not zero.

    >>> normalised(np.array([1.0, 3.0]), "average")
    array([0.25, 0.75])
    """
    total = float(weights.sum())
    if total == 0:
        raise LorascopeError(
            f"the weights of {method} sum to zero", found=weights.tolist(), hint="`linear` takes such weights"
        )
    return weights / total


def convex(weights: NDArray[np.float64], method: str) -> NDArray[np.float64]:
    """The weights over their sum, where none is negative and one is positive."""
    if (weights < 0).any():
        raise LorascopeError(
            f"{method} has no meaning for negative weights",
            found=weights.tolist(),
            hint="`linear` and `subtract` take them",
        )
    return normalised(weights, method)
