"""lorascope: LoRA adapters as data.

The names below are imported when they are first used, so that ``import lorascope`` is cheap and brings
neither PyTorch nor a hub client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorascope.adapter import Adapter, LowRank, Update
    from lorascope.errors import AdapterError, LorascopeError
    from lorascope.formats import read, write
    from lorascope.predict import Predictor

__version__ = "0.1.0"

_HOME = {
    "Adapter": "lorascope.adapter",
    "AdapterError": "lorascope.errors",
    "LorascopeError": "lorascope.errors",
    "LowRank": "lorascope.adapter",
    "Predictor": "lorascope.predict",
    "Update": "lorascope.adapter",
    "read": "lorascope.formats",
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
    "read",
    "write",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lorascope' has no attribute {name!r}")
