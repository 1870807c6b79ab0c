"""Fields of an untrusted configuration that more than one parametrisation reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from lorascope.errors import AdapterError


def number(options: Mapping[str, Any], key: str, default: float) -> float:
    """``options[key]`` as a finite float, the default where it is absent or null.

    >>> number({"eps": 1}, "eps", 6e-5), number({}, "eps", 6e-5)
    (1.0, 6e-05)

    Raises:
        AdapterError: where it is something else; booleans and strings are.
    """
    value = options.get(key)
    if value is None:
        return default
    if not isinstance(value, bool) and isinstance(value, int | float):
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
        if math.isfinite(result):
            return result
    raise AdapterError("must be a finite number", key=key, found=ascii(value)[:80])


def seed(options: Mapping[str, Any], key: str, default: int) -> int:
    """``options[key]`` as a seed of torch's generator, the default where it is absent.

    Raises:
        AdapterError: where it is null or no integer that a generator takes.
    """
    value = options.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise AdapterError(
            "a seed must be an integer that is not negative: without it the positions are not known",
            key=key,
            found=ascii(value)[:80],
        )
    return value


def names(options: Mapping[str, Any], key: str) -> list[str] | None:
    """``options[key]`` as a list of strings, None where it is absent or null.

    >>> names({"target_parameters": ["experts.down_proj"]}, "target_parameters")
    ['experts.down_proj']

    Raises:
        AdapterError: where it is something else.
    """
    value: object = options.get(key)
    if value is None:
        return None
    found = [name for name in cast("list[Any]", value) if isinstance(name, str)] if isinstance(value, list) else []
    if not isinstance(value, list) or len(found) < len(cast("list[Any]", value)):
        raise AdapterError("must be a list of names", key=key, found=ascii(cast("object", value))[:80])
    return found


def switch(options: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """``options[key]`` as a boolean, the default where it is absent or null.

    Raises:
        AdapterError: where it is something else.
    """
    value = options.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise AdapterError("must be true or false", key=key, found=ascii(value)[:80])
    return value
