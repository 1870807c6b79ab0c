"""GGUF files: a reader that trusts no count, length or offset, for the tensor types that adapters are stored in.

    "GGUF" | version | number of tensors | number of fields | fields | tensor infos | padding | data

Integers are little-endian. A string is its length and its bytes; dimensions are stored fastest first, so that a
matrix [rows, columns] has the dimensions (columns, rows). F32, F16, BF16 and F64 are views of the mapped file; Q8_0
(blocks of 32 signed bytes under one float16) is a view of its blocks, [rows, columns/32]; ``dense`` multiplies them out
to float32, which is exact.

Source: https://github.com/ggml-org/ggml, docs/gguf.md and src/gguf.cpp, whose checks these are.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lorascope.errors import AdapterError
from lorascope.formats.contents import TensorFile

MAX_KEPT = 4096
"""Values that an array in the metadata may have to be kept; of a longer one only the length is."""

_WHOLE_FILE = 1 << 20  # smaller files are read whole: each mapping would hold a file descriptor while it lives
_MAX_NAME = 64
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Mapping[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    _BOOL: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_Q8_0 = 8
_BLOCK = np.dtype([("scale", "<f2"), ("values", "i1", (32,))])
_DTYPES: Mapping[int, tuple[str, np.dtype[Any]]] = {
    0: ("F32", np.dtype("<f4")),
    1: ("F16", np.dtype("<f2")),
    _Q8_0: ("Q8_0", _BLOCK),
    28: ("F64", np.dtype("<f8")),
    30: ("BF16", np.dtype(ml_dtypes.bfloat16)),
}


def read_gguf(path: Path) -> TensorFile:
    """The tensors of a GGUF file as read-only arrays, and its fields: strings as they are, other values as JSON.

    Raises:
        AdapterError: where the file is not exactly a GGUF file, or holds tensors of another type.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        data = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) if size > _WHOLE_FILE else stream.read(size)
    try:
        fields, stored, tensors = _parsed(_Cursor(data, len(data)))
    except AdapterError as error:
        error.file = error.file or str(path)
        raise
    return TensorFile(tensors, GGUFFields(fields, stored, data), "gguf")


class GGUFFields(dict[str, str]):
    """The fields of a file as text, and what text does not tell, for a lossless write-back.

    Args:
        fields: key → strings as they are, other values as JSON.
        stored: key → the bytes of type and value.
        image: the whole file.
    """

    def __init__(self, fields: Mapping[str, str], stored: Mapping[str, bytes], image: mmap.mmap | bytes) -> None:
        super().__init__(fields)
        self.stored, self.image = stored, image


def is_in_blocks(tensor: NDArray[Any]) -> bool:
    """Whether a tensor is a view of Q8_0 blocks."""
    return tensor.dtype == _BLOCK


def dense_shape(tensor: NDArray[Any]) -> tuple[int, ...]:
    """The shape of a tensor once its blocks are multiplied out."""
    return (*tensor.shape[:-1], tensor.shape[-1] * 32) if is_in_blocks(tensor) else tensor.shape


def dense(tensor: NDArray[Any]) -> NDArray[Any]:
    """A tensor of numbers: blocks multiplied out to float32, every other one as it is.

    >>> blocks = np.zeros((2, 1), _BLOCK)
    >>> blocks["scale"], blocks["values"][0, 0, 5] = 0.5, 3
    >>> dense(blocks).shape, float(dense(blocks)[0, 5])
    ((2, 32), 1.5)
    """
    if not is_in_blocks(tensor):
        return tensor
    numbers = tensor["values"] * tensor["scale"][..., None].astype(np.float32)
    numbers.flags.writeable = False
    return numbers.reshape(dense_shape(tensor))


class _Cursor:
    """A place in the file; every step is checked against its end before it is taken."""

    def __init__(self, data: mmap.mmap | bytes, size: int) -> None:
        self.data, self.size, self.place = data, size, 0

    def take(self, count: int, what: str) -> int:
        """Step over ``count`` bytes; the place where they begin."""
        start = self.place
        if count > self.size - start:
            raise AdapterError(
                f"truncated: {what} reaches beyond the end of the file",
                expected=f"{count} bytes from byte {start}",
                found=f"{self.size - start} bytes",
                hint="the file was cut off: download it again",
            )
        self.place = start + count
        return start

    def number(self, kind: str, what: str) -> Any:
        dtype = np.dtype(kind)
        return np.frombuffer(self.data, dtype, 1, self.take(dtype.itemsize, what))[0].item()

    def count(self, smallest: int, what: str) -> int:
        """A number of items of at least ``smallest`` bytes each, which must fit into the rest of the file."""
        count = int(self.number("<u8", what))
        if count * smallest > self.size - self.place:
            raise AdapterError(f"{what} does not fit into the file", found=f"{count} in {self.size - self.place} bytes")
        return count

    def text(self, what: str) -> str:
        length = self.count(1, f"the length of {what}")
        start = self.take(length, what)
        try:
            return bytes(self.data[start : start + length]).decode("utf-8")
        except UnicodeDecodeError:
            raise AdapterError(f"{what} is not UTF-8 text") from None


@dataclass(frozen=True)
class _Info:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    def nbytes(self) -> int:
        """Bytes of the data.

        Raises:
            AdapterError: where the type is not read, or rows cannot be cut into blocks.
        """
        if self.kind not in _DTYPES:
            names = ", ".join(name for name, _ in _DTYPES.values())
            raise AdapterError(
                "a tensor of a type that is not read", key=self.name, expected=names, found=f"GGML type {self.kind}"
            )
        count = 1
        for length in self.shape:  # Python's integers do not overflow
            count *= length
        if self.kind != _Q8_0:
            return count * _DTYPES[self.kind][1].itemsize
        if not self.shape or self.shape[-1] % 32:
            raise AdapterError("a row of a Q8_0 tensor is no multiple of 32", key=self.name, found=list(self.shape))
        return count // 32 * _BLOCK.itemsize


def _parsed(cursor: _Cursor) -> tuple[dict[str, str], dict[str, bytes], dict[str, NDArray[Any]]]:
    cursor.take(4, "the magic")
    version = cursor.number("<u4", "the version")
    if version & 0xFFFF == 0 and version:
        raise AdapterError("a big-endian GGUF file, which is not read", found=f"version {version >> 24}")
    if version not in (2, 3):
        raise AdapterError("a version of GGUF that is not read", expected="2 or 3", found=version)
    tensor_count = cursor.count(24, "the number of tensors")
    field_count = cursor.count(13, "the number of fields")
    fields: dict[str, Any] = {}
    stored: dict[str, bytes] = {}
    for key, value, encoded in _fields(cursor, field_count):
        if key in fields:
            raise AdapterError("two fields have the same name", key=key)
        fields[key], stored[key] = value, encoded
    infos = _infos(cursor, tensor_count)
    alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise AdapterError("the alignment is not a power of two", key="general.alignment", found=ascii(alignment)[:40])
    start = _aligned(cursor.place, alignment)
    tensors: dict[str, NDArray[Any]] = {}
    reach = 0
    for info in infos:
        size = info.nbytes()
        if info.offset != reach:
            raise AdapterError(
                "overlapping or non-contiguous tensor data",
                key=info.name,
                expected=f"data that begins at byte {reach}",
                found=f"byte {info.offset}",
            )
        if start + reach + size > cursor.size:
            raise AdapterError(
                f"truncated: tensors reach byte {reach + size} of the data, the file has {max(cursor.size - start, 0)}",
                key=info.name,
                hint="the file was cut off: download it again",
            )
        tensors[info.name] = _array(cursor.data, info, start + reach, size)
        reach = _aligned(reach + size, alignment)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
    return texts, stored, tensors


def _aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment


def _fields(cursor: _Cursor, count: int) -> Iterator[tuple[str, Any, bytes]]:
    for _ in range(count):
        key = cursor.text("the name of a field")
        start = cursor.place
        value = _value(cursor, int(cursor.number("<u4", "a field")), key)
        yield key, value, bytes(cursor.data[start : cursor.place])


def _value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind == _STRING:
        return cursor.text("a field")
    if kind in _SCALARS:
        value = cursor.number(_SCALARS[kind], "a field")
        return bool(value) if kind == _BOOL else value
    if kind == _ARRAY:
        return _array_value(cursor, int(cursor.number("<u4", "a field")), key)
    raise AdapterError("a field of an unknown type", key=key[:200], found=kind)


def _array_value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind == _STRING:
        count = cursor.count(8, "the length of an array")
        texts: list[str] = []
        for _ in range(count):
            text = cursor.text("a field")
            if len(texts) < MAX_KEPT:
                texts.append(text)
        return texts if count <= MAX_KEPT else f"{count} strings"
    if kind not in _SCALARS:
        raise AdapterError("an array of an unknown type, or of arrays", key=key[:200], found=kind)
    dtype = np.dtype(_SCALARS[kind])
    count = cursor.count(dtype.itemsize, "the length of an array")
    start = cursor.take(count * dtype.itemsize, "a field")
    if count > MAX_KEPT:
        return f"{count} values"
    values: list[Any] = np.frombuffer(cursor.data, dtype, count, start).tolist() if count else []
    return [bool(value) for value in values] if kind == _BOOL else values


def _infos(cursor: _Cursor, count: int) -> list[_Info]:
    infos: dict[str, _Info] = {}
    for _ in range(count):
        name = cursor.text("the name of a tensor")
        if len(name.encode("utf-8")) >= _MAX_NAME:
            raise AdapterError("the name of a tensor is too long", key=name[:80], expected=f"under {_MAX_NAME} bytes")
        if name in infos:
            raise AdapterError("two tensors have the same name", key=name)
        axes = int(cursor.number("<u4", "a tensor's dimensions"))
        if axes > 4:
            raise AdapterError("a tensor has too many axes", key=name, expected="at most 4", found=axes)
        shape = tuple(int(cursor.number("<u8", "a tensor's dimensions")) for _ in range(axes))
        kind, offset = cursor.number("<u4", "a tensor's type"), cursor.number("<u8", "a tensor's offset")
        infos[name] = _Info(name, shape[::-1], int(kind), int(offset))
    return list(infos.values())


def _array(data: mmap.mmap | bytes, info: _Info, start: int, size: int) -> NDArray[Any]:
    dtype = _DTYPES[info.kind][1]
    if not size:
        try:
            return np.empty(info.shape, np.float32)
        except (ValueError, OverflowError):  # an empty tensor with an impossible dimension
            raise AdapterError("the shape of an empty tensor is impossible", key=info.name) from None
    shape = info.shape if info.kind != _Q8_0 else (*info.shape[:-1], info.shape[-1] // 32)
    return np.frombuffer(data, dtype, size // dtype.itemsize, start).reshape(shape)
