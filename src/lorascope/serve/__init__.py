"""Many adapters of one base served side by side: stacks and folders for servers, and a batched linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorascope.serve.packing import Served, ServedAdapter, serve_pack

if TYPE_CHECKING:
    from lorascope.serve.batched import BatchedLinear

__all__ = ["BatchedLinear", "Served", "ServedAdapter", "serve_pack"]


def __getattr__(name: str) -> Any:
    if name == "BatchedLinear":  # needs PyTorch, which the files for servers do not
        from lorascope.serve.batched import BatchedLinear

        return BatchedLinear
    raise AttributeError(f"module 'lorascope.serve' has no attribute {name!r}")
