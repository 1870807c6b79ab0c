"""The forge: trains adapters, many at once, over one shared frozen base, and measures their labels.

Importing this package is cheap; the names below bring PyTorch when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorascope.forge.base import load_base
    from lorascope.forge.engine import AdamW, AdapterStack, Slot, train
    from lorascope.forge.kind import Kind
    from lorascope.forge.plan import plan
    from lorascope.forge.recipe import Recipe, Session
    from lorascope.forge.run import ForgeResult, forge

_HOME = {
    "AdamW": "engine",
    "AdapterStack": "engine",
    "ForgeResult": "run",
    "Kind": "kind",
    "Recipe": "recipe",
    "Session": "recipe",
    "Slot": "engine",
    "forge": "run",
    "load_base": "base",
    "plan": "plan",
    "train": "engine",
}

__all__ = [
    "AdamW",
    "AdapterStack",
    "ForgeResult",
    "Kind",
    "Recipe",
    "Session",
    "Slot",
    "forge",
    "load_base",
    "plan",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"lorascope.forge.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lorascope.forge' has no attribute {name!r}")
