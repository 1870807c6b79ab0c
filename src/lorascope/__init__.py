"""lorascope: LoRA adapters as data.

The names below are imported when they are first used, so that ``import lorascope`` is cheap and brings
neither PyTorch nor a hub client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lorascope.version import __version__

if TYPE_CHECKING:
    from lorascope.adapter import Adapter, LowRank, Update
    from lorascope.conversion import bake, convert
    from lorascope.errors import AdapterError, LorascopeError
    from lorascope.formats import read, write
    from lorascope.predict import Predictor
    from lorascope.scan import verify

_HOME = {
    "Adapter": "lorascope.adapter",
    "AdapterError": "lorascope.errors",
    "LorascopeError": "lorascope.errors",
    "LowRank": "lorascope.adapter",
    "Predictor": "lorascope.predict",
    "Update": "lorascope.adapter",
    "bake": "lorascope.conversion",
    "convert": "lorascope.conversion",
    "read": "lorascope.formats",
    "verify": "lorascope.scan",
    "write": "lorascope.formats",
}

__all__ = [
    "Adapter",
    "AdapterError",
    "LorascopeError",
    "LowRank",
    "Predictor",
    "Update",
    "__version__",
    "bake",
    "convert",
    "read",
    "verify",
    "write",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lorascope' has no attribute {name!r}")
