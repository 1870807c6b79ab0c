"""Writing GGUF files, version 3, little-endian; ``gguf_file`` says how they are laid out.

Tensors are written in the types that llama.cpp multiplies by, F32, F16 and BF16, and in F64.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from lorascope.errors import AdapterError
from lorascope.formats.contents import Tensors
from lorascope.formats.output_file import replaced_file
from lorascope.formats.stream_file import Slot, Unit, is_placeholder, units_of

Field = str | int | float | Sequence[int] | bytes
"""The value of a field: a string, a uint32, a float32, an array of uint32, or the bytes of type and value as stored."""

TYPES: Mapping[str, int] = {"float32": 0, "float16": 1, "float64": 28, "bfloat16": 30}
"""dtype → GGML type, of the tensors that are written."""

_ALIGNMENT = 32
_MAX_NAME = 64
_UINT32, _FLOAT32, _STRING, _ARRAY = 4, 6, 8, 9


def write_gguf(path: Path, fields: Mapping[str, Field], tensors: Tensors) -> None:
    """Write fields and tensors to a GGUF file, whole or not at all.

    Args:
        path: the file.
        fields: key → value; the alignment is the default one and has no field.
        tensors: name → array of at most 4 axes in one of ``TYPES``.

    Raises:
        AdapterError: where a tensor or field is one that GGUF has no place for, or a tensor has no values.
        OutputError: where the file cannot be written; nothing is left behind.

    >>> import tempfile, numpy as np
    >>> from lorascope.formats.gguf_file import read_gguf
    >>> path = Path(tempfile.mkdtemp()) / "a.gguf"
    >>> write_gguf(path, {"general.type": "adapter"}, {"x": np.ones((2, 3), np.float16)})
    >>> read_gguf(path).tensors["x"].shape
    (2, 3)
    """
    write_gguf_units(path, fields, units_of(tensors))


def write_gguf_units(path: Path, fields: Mapping[str, Field], units: Sequence[Unit]) -> None:
    """The same for tensors that are made unit by unit, each of which is called twice.

    Raises:
        AdapterError: as ``write_gguf``, and where two tensors have one name.
        OutputError: where the file cannot be written; nothing is left behind.
    """
    slots: dict[str, Slot] = {}
    for unit in units:
        for name, tensor in unit().items():
            if name in slots:
                raise AdapterError("two tensors of the file would have one name", key=name)
            _check(name, tensor)
            slots[name] = Slot(name, tensor.dtype, tensor.shape)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(slots), len(fields))
    head += b"".join(_text(key) + _encoded(key, value) for key, value in fields.items())
    offset = 0
    for slot in slots.values():
        shape = slot.shape[::-1]
        head += _text(slot.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPES[slot.dtype.name], offset)
        offset += slot.nbytes + _gap(slot.nbytes)
    with replaced_file(path) as temporary, temporary.open("wb") as stream:
        _write_aligned(stream, head)
        for unit in units:
            for tensor in unit().values():
                _write_aligned(stream, _little_endian(tensor).tobytes())


def _check(name: str, tensor: NDArray[Any]) -> None:
    if is_placeholder(tensor):
        raise AdapterError(
            "the values were not fetched: only headers were read", key=name, hint="read the adapter in full"
        )
    if len(name.encode("utf-8")) >= _MAX_NAME:
        raise AdapterError("too long a name for a tensor of GGUF", key=name, expected=f"under {_MAX_NAME} bytes")
    if tensor.ndim > 4 or tensor.dtype.name not in TYPES:
        raise AdapterError(
            "GGUF has no place for this tensor",
            key=name,
            expected=f"at most 4 axes of {', '.join(TYPES)}",
            found=f"{tensor.dtype.name} {list(tensor.shape)}",
        )


def _encoded(key: str, value: Field) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    try:
        if isinstance(value, int):
            return struct.pack("<II", _UINT32, value)
        if isinstance(value, float):
            return struct.pack("<If", _FLOAT32, value)
        return struct.pack(f"<IIQ{len(value)}I", _ARRAY, _UINT32, len(value), *value)
    except (struct.error, OverflowError):
        raise AdapterError(
            "GGUF has no place for the value of this field",
            key=key,
            expected="whole numbers from 0 to 2³² − 1, or a float32",
            found=ascii(value)[:80],
        ) from None


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded


def _gap(size: int) -> int:
    return -size % _ALIGNMENT


def _write_aligned(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
    stream.write(b"\0" * _gap(len(data)))


def _little_endian(tensor: NDArray[Any]) -> NDArray[Any]:
    return tensor.astype(tensor.dtype.newbyteorder("<")) if tensor.dtype.byteorder == ">" else tensor
