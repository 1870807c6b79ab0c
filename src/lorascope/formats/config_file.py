"""The JSON configuration beside the weights: bounded, strictly typed, and never a path to follow."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lorascope.errors import AdapterError

MAX_CONFIG = 1 << 20
"""Bytes; real configurations are under 12 KB."""


def read_config(path: Path, *, limit: int = MAX_CONFIG) -> tuple[dict[str, Any], str]:
    """The configuration object of a JSON file, and its text letter by letter.

    Raises:
        AdapterError: where it is larger than ``limit`` bytes, or not a JSON object.
    """
    # the system's own files say that they have 0 bytes, and reading some of them never ends
    raw = b""
    if path.stat().st_size:
        with path.open("rb") as stream:
            raw = stream.read(limit + 1)
    return parse_config(raw, path, limit=limit)


def parse_config(raw: bytes, path: Path, *, limit: int = MAX_CONFIG) -> tuple[dict[str, Any], str]:
    """As ``read_config``, of bytes that were read; ``path`` is for messages."""
    if len(raw) > limit:
        raise AdapterError("the configuration is too large", file=path, expected=f"at most {limit} bytes")
    try:
        text = raw.decode("utf-8")
        value: Any = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates could not be printed later
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            "the configuration is not JSON", file=path, found=str(error)[:120] or type(error).__name__
        ) from None
    if not isinstance(value, dict):
        raise AdapterError(
            "the configuration is not a JSON object", file=path, found=type(cast("object", value)).__name__
        )
    return cast("dict[str, Any]", value), text


class _Object(dict[str, Any]):
    """A JSON object that knows which of its keys were there more than once, and whether with unlike values."""

    repeated: Mapping[str, bool] = {}

    @classmethod
    def of(cls, pairs: list[tuple[str, Any]]) -> _Object:
        value = cls(pairs)
        if len(value) < len(pairs):
            texts: dict[str, set[str]] = {}
            counts = Counter(key for key, _ in pairs)
            for key, one in pairs:
                if counts[key] > 1:
                    texts.setdefault(key, set()).add(json.dumps(one, sort_keys=True))
            value.repeated = {key: len(found) > 1 for key, found in texts.items()}
        return value


def repeated_fields(text: str) -> dict[str, bool]:
    """The fields that a JSON object has more than once, by path, and whether their values differ.

    Parsers keep the last one in silence, some the first.

    Args:
        text: JSON that ``read_config`` has taken.

    >>> repeated_fields('{"r": 8, "alpha_pattern": {"q": 1, "q": 2}, "r": 8}')
    {'r': False, 'alpha_pattern.q': True}
    """
    found: dict[str, bool] = {}
    open_values: list[tuple[str, Any]] = [("", json.loads(text, object_pairs_hook=_Object.of))]
    while open_values:
        path, value = open_values.pop()
        if isinstance(value, _Object):
            found |= {path + key: differ for key, differ in value.repeated.items()}
            open_values += ((f"{path}{key}.", inner) for key, inner in value.items() if isinstance(inner, dict | list))
        elif isinstance(value, list):
            open_values += ((path, inner) for inner in cast("list[Any]", value) if isinstance(inner, dict | list))
    return found


def positive_integer(config: Mapping[str, Any], key: str, default: int | None) -> int | None:
    """``config[key]`` as an integer above 0, or the default where it is absent or null."""
    value = config.get(key)
    if value is None:
        return default
    return checked_rank(value, key)


def checked_rank(value: Any, key: str) -> int:
    """``value`` if it is an integer above 0; True and 8.0 are not."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AdapterError(
            "a rank must be a positive integer", key=key, expected="an integer above 0", found=ascii(value)[:80]
        )
    return value


def checked_alpha(value: Any, key: str) -> float:
    """``value`` as a finite float; booleans and strings are refused."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AdapterError("alpha must be a number", key=key, found=ascii(value)[:80])
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise AdapterError("alpha must be a finite number", key=key, found=ascii(value)[:80])
    return number


def flag(config: Mapping[str, Any], key: str) -> bool:
    """``config[key]`` as a boolean, False where it is absent or null."""
    value = config.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise AdapterError("must be true or false", key=key, found=ascii(value)[:80])
    return value


def mapping(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """``config[key]`` as an object, empty where it is absent or null."""
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AdapterError("must be an object", key=key, found=ascii(value)[:80])
    return cast("dict[str, Any]", value)


def text_or_none(config: Mapping[str, Any], key: str) -> str | None:
    """``config[key]`` where it is a string that is not empty, else None."""
    value = config.get(key)
    return value if isinstance(value, str) and value else None
