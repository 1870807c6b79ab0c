"""lorascope: LoRA adapters as data.

The names below and the packages are imported when they are first used, so that ``import lorascope`` is cheap and brings
neither PyTorch nor a hub client.

>>> import lorascope
>>> lorascope.merge.METHODS["linear"].formula
'Σ w_i ΔW_i'
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

_PACKAGES = (
    "adapter",
    "compare",
    "compress",
    "conversion",
    "features",
    "forge",
    "formats",
    "merge",
    "nn",
    "predict",
    "retrieve",
    "scan",
    "serve",
    "symmetry",
    "zoo",
)

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
    if name in _PACKAGES:
        return importlib.import_module(f"lorascope.{name}")
    raise AttributeError(f"module 'lorascope' has no attribute {name!r}")
