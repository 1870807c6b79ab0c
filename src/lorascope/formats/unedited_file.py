"""Whether a file is to be written as it was read: the very tensors and metadata."""

from __future__ import annotations

from collections.abc import Collection

from numpy.typing import DTypeLike

from lorascope.adapter import Adapter


def is_unedited(adapter: Adapter, formats: Collection[str], dtype: DTypeLike | None) -> bool:
    """Whether the adapter is one of these formats, as it was read, and no other dtype is asked for."""
    return adapter.original is not None and adapter.provenance.format in formats and dtype is None
