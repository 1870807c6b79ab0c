"""Writing back what was read: the very tensors and metadata, for formats that are not written from others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from numpy.typing import DTypeLike

from lorascope.adapter import Adapter
from lorascope.errors import AdapterError
from lorascope.formats.safetensors_file import write_safetensors


def unedited(format: str) -> Callable[[Adapter, Path, DTypeLike | None], None]:
    """The writer of a format whose files are only written as they were read."""

    def write(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
        if adapter.original is None or adapter.provenance.format != format or dtype is not None:
            raise AdapterError(
                f"this version writes {format} files only as they were read",
                expected="an unedited adapter of this format and no dtype",
                found=adapter.provenance.format,
                hint='write it with format="peft", "diffusers" or "kohya"',
            )
        write_safetensors(path, adapter.original, adapter.provenance.metadata)

    return write
