"""Writing a safetensors file tensor by tensor, so that only one of them is in memory at a time.

8 bytes, little-endian: N | N bytes of JSON, padded with spaces to a multiple of 8 | data, without gaps
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.formats.safetensors_file import dtype_name


class Slot(NamedTuple):
    """A tensor that is to come: its name, dtype and shape."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def write_streamed(
    path: Path, slots: Iterable[Slot], tensors: Iterable[NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write the tensors, which come one after another in the order, dtypes and shapes of ``slots``.

    Raises:
        ValueError: where a tensor is not the one that its slot announced.

    >>> import tempfile
    >>> from lorascope.formats.safetensors_file import read_safetensors
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> write_streamed(path, [Slot("x", np.dtype("float16"), (2,))], iter([np.ones(2, np.float16)]))
    >>> read_safetensors(path).tensors["x"].tolist()
    [1.0, 1.0]
    """
    announced = list(slots)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for slot in announced:
        begin, end = end, end + slot.dtype.itemsize * int(np.prod(slot.shape, dtype=np.int64))
        header[slot.name] = {
            "dtype": dtype_name(slot.dtype),
            "shape": list(slot.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for slot, tensor in zip(announced, tensors, strict=True):
            if tensor.dtype != slot.dtype or tensor.shape != slot.shape:
                raise ValueError(f"{slot.name}: announced {slot.dtype} {slot.shape}, got {tensor.dtype} {tensor.shape}")
            stream.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
