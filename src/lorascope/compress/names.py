"""Names of adapters that are safe as names of files."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def is_safe(name: str) -> bool:
    """Whether a name is one part of a path on every system, and not one that leads elsewhere.

    >>> is_safe("style-v2.1"), is_safe(".."), is_safe("a/b"), is_safe("")
    (True, False, False, False)
    """
    return bool(_SAFE.fullmatch(name)) and not _RESERVED.fullmatch(name) and not name.endswith(".")


def told_apart(names: Sequence[str]) -> list[str]:
    """Safe names, in order: the last parts of paths, other characters as dashes, numbered where two would be alike.

    >>> told_apart(["zoo/a", "/b/a/", "c d.safetensors", "../.."])
    ['a', 'a-2', 'c-d', 'adapter']
    """
    taken: set[str] = set()
    found: list[str] = []
    for name in names:
        last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(r"\.(safetensors|bin|pt|npz|gguf)$", "", last)).strip(".-")[
            :100
        ]
        plain = plain if is_safe(plain) else "adapter"
        unique, number = plain, 1
        while unique.lower() in taken:  # some file systems do not tell capitals apart
            number += 1
            unique = f"{plain}-{number}"
        taken.add(unique.lower())
        found.append(unique)
    return found
