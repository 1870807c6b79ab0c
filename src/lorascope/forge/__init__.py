"""The forge: trains adapters, many at once, over one shared frozen base, and measures their labels.

Importing this package is cheap; the names below bring PyTorch when they are first used.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from lorascope.errors import MissingExtraError

if TYPE_CHECKING:
    from lorascope.forge.base import load_base
    from lorascope.forge.evidence import gather
    from lorascope.forge.kind import Kind
    from lorascope.forge.planning import plan
    from lorascope.forge.recipe import Recipe, Session
    from lorascope.forge.run import ForgeResult, forge
    from lorascope.forge.slot import Slot
    from lorascope.forge.stack import AdapterStack
    from lorascope.forge.training import EarlyStop, Trained, Training, train

if importlib.util.find_spec("torch") is None:  # looked for, not imported: its absence names the extra
    raise MissingExtraError.of("torch", "forge", "forging adapters")

_HOME = {
    "AdapterStack": "stack",
    "EarlyStop": "training",
    "ForgeResult": "run",
    "Kind": "kind",
    "Recipe": "recipe",
    "Session": "recipe",
    "Slot": "slot",
    "Trained": "training",
    "Training": "training",
    "forge": "run",
    "gather": "evidence",
    "load_base": "base",
    "plan": "planning",
    "train": "training",
}

__all__ = [
    "AdapterStack",
    "EarlyStop",
    "ForgeResult",
    "Kind",
    "Recipe",
    "Session",
    "Slot",
    "Trained",
    "Training",
    "forge",
    "gather",
    "load_base",
    "plan",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"lorascope.forge.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lorascope.forge' has no attribute {name!r}")
