"""Safetensors files: a reader that trusts nothing in the header, and an atomic writer.

    8 bytes, little-endian: N | N bytes of JSON: name → {dtype, shape, data_offsets}, __metadata__ | data

Reading maps the file and gives views in the file's own dtype; no tensor byte is touched. The checks are those of
the reference reader (https://github.com/huggingface/safetensors, ``SafeTensors::deserialize``): header length,
UTF-8 JSON, no duplicate names, byte range = product(shape) · size, ranges contiguous and covering all data.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import AdapterError
from lorascope.formats.contents import TensorFile, Tensors
from lorascope.formats.dtypes import STORED
from lorascope.formats.stream_file import units_of, write_units

MAX_HEADER = 100_000_000
"""The limit of the reference reader, in bytes."""

_WHOLE_FILE = 1 << 20  # smaller files are read whole: each mapping would hold a file descriptor while it lives

_Buffer = mmap.mmap | bytes | memoryview


def read_safetensors(path: Path) -> TensorFile:
    """The tensors of a safetensors file as read-only views, and its metadata.

    Raises:
        AdapterError: where the file is not exactly a safetensors file; it names what was expected and found.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> write_safetensors(path, {"x": np.ones((2, 3), np.float16)}, {"made": "here"})
    >>> file = read_safetensors(path)
    >>> file.tensors["x"].shape, file.tensors["x"].dtype.name, file.metadata["made"]
    ((2, 3), 'float16', 'here')
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        header = read_header(stream, size, path)
        data = _mapped(stream, size, path)
    return _viewed(data, header)


def read_safetensors_view(data: memoryview, path: object) -> TensorFile:
    """The tensors of a safetensors file that is a slice of a mapped one, as views of it; ``path`` is for messages.

    Raises:
        AdapterError: as ``read_safetensors``.
    """
    return _viewed(data, read_header(_Slice(data), len(data), path))


class _Slice:
    """A slice of memory read from its beginning."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def read(self, count: int, /) -> bytes:
        piece, self._data = self._data[:count], self._data[count:]
        return bytes(piece)


class Place(NamedTuple):
    """Where a tensor is: dtype, shape, and the bytes [begin, end) counted from the end of the header."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """A checked header: tensors by name, the strings beside them, and where in the file the data start."""

    places: Mapping[str, Place]
    metadata: Mapping[str, str]
    start: int


class Stream(Protocol):
    """What a header is read from."""

    def read(self, count: int, /) -> bytes:
        """So many bytes, fewer at the end."""
        ...


def read_header(stream: Stream, size: int, path: object) -> Header:
    """The header of a file of ``size`` bytes, of which no more is read than the header; ``path`` is for messages.

    Raises:
        AdapterError: as ``read_safetensors``.
    """
    entries, start = _header(stream.read(8), stream, size, path)
    metadata = _metadata(entries.pop("__metadata__", None), path)
    places = {name: _entry(name, entry, path) for name, entry in entries.items()}
    _check_cover(places, size - start, path)
    return Header(places, metadata, start)


def write_safetensors(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    Raises:
        AdapterError: where a tensor has no values, since only headers were read.
        OutputError: where the file cannot be written; nothing is left behind.
    """
    write_units(path, units_of(tensors), metadata)


def _header(prefix: bytes, stream: Stream, size: int, path: object) -> tuple[dict[str, Any], int]:
    if len(prefix) < 8:
        raise AdapterError(
            "too short for a safetensors header", file=path, expected="8 bytes or more", found=f"{size} bytes"
        )
    length = int.from_bytes(prefix, "little")
    if length == 0:
        raise AdapterError("empty header: not a safetensors file", file=path, found="header length 0")
    if length > MAX_HEADER or length > size - 8:
        over_limit = length > MAX_HEADER
        limit = f" and the limit of {MAX_HEADER // 1_000_000} MB" if over_limit else ""
        raise AdapterError(
            f"header length {length} exceeds the {size - 8} bytes that follow{limit}",
            file=path,
            hint="this is no safetensors file"
            if over_limit
            else "the file is truncated: download it again, or it is no safetensors file",
        )
    text = stream.read(length)
    try:
        parsed: Any = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except _DuplicateNameError as error:
        raise AdapterError("two tensors have the same name", file=path, key=str(error), code="duplicate-keys") from None
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise AdapterError("header is not JSON: not a safetensors file", file=path) from None
    if not text.startswith(b"{") or not isinstance(parsed, dict):
        raise AdapterError("header is not JSON: not a safetensors file", file=path, expected="an object")
    return cast("dict[str, Any]", parsed), 8 + length


class _DuplicateNameError(Exception):
    """A JSON object names a key twice; the first or the second would be silently lost."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise _DuplicateNameError(_shown(name))
        result[name] = value
    return result


def _metadata(value: Any, path: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AdapterError("the metadata is no object", file=path, key="__metadata__", found=type(value).__name__)
    pairs = cast("dict[str, Any]", value)
    for name, text in pairs.items():
        if not isinstance(text, str) or not _is_printable_as_utf8(name + text):
            raise AdapterError(
                "the metadata must map strings to strings",
                file=path,
                key=f"__metadata__.{_shown(name)}",
                found=type(text).__name__,
            )
    return pairs


def _is_printable_as_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and no file or terminal can
        return False
    return True


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _entry(name: str, entry: Any, path: object) -> Place:
    if not _is_printable_as_utf8(name):
        raise AdapterError("a tensor name is not text", file=path, key=_shown(name))
    if not isinstance(entry, dict):
        raise AdapterError("the header entry of a tensor is no object", file=path, key=name)
    fields = cast("dict[str, Any]", entry)
    dtype_name, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    dtype = STORED.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise AdapterError(
            "unknown dtype of a tensor",
            file=path,
            key=name,
            expected=", ".join(STORED),
            found=ascii(dtype_name)[:80],
        )
    numbers, pair = _naturals(shape), _naturals(offsets)
    if numbers is None or pair is None or len(pair) != 2 or pair[0] > pair[1] or len(numbers) > 32:
        raise AdapterError(
            "a tensor's shape or byte range is not made of whole numbers",
            file=path,
            key=name,
            expected="shape [n, …] and data_offsets [begin, end]",
            found=ascii({"shape": shape, "data_offsets": offsets})[:200],
        )
    begin, end = pair
    size = dtype.itemsize
    for number in numbers:  # Python's integers do not overflow
        size *= number
    if size != end - begin:
        raise AdapterError(
            f"shape and byte range of {name} disagree",
            file=path,
            key=name,
            expected=f"{size} bytes for {dtype_name} {list(numbers)}",
            found=f"{end - begin} bytes",
        )
    return Place(dtype, numbers, begin, end)


def _naturals(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    numbers = cast("list[Any]", value)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63 for n in numbers)
    return tuple(numbers) if whole else None


def _check_cover(places: Mapping[str, Place], available: int, path: object) -> None:
    reach = 0
    for name, (_, _, begin, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != reach:
            raise AdapterError(
                "overlapping or non-contiguous tensor data",
                file=path,
                key=name,
                expected=f"data that begins at byte {reach}",
                found=f"byte {begin}",
            )
        reach = end
    if reach > available:
        raise AdapterError(
            f"truncated: tensors reach byte {reach} of the data, the file has {available}",
            file=path,
            hint="the file was cut off: download it again",
        )
    if reach < available:
        raise AdapterError(
            "bytes after the last tensor that belong to none",
            file=path,
            expected=f"{reach} bytes of data",
            found=f"{available} bytes",
        )


def _mapped(stream: Any, size: int, path: Path) -> mmap.mmap | bytes:
    try:
        if size > _WHOLE_FILE:
            return mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)
        stream.seek(0)
        data = stream.read(size)
    except OSError as error:
        hint = "close some adapters, or raise `ulimit -n`" if error.errno == errno.EMFILE else None
        raise AdapterError(f"the file cannot be mapped: {error.strerror}", file=path, hint=hint) from error
    if len(data) != size:
        raise AdapterError("the file shrank while it was read", file=path, expected=size, found=len(data))
    return data


def _viewed(data: _Buffer, header: Header) -> TensorFile:
    tensors = {
        name: _view(data, place.dtype, place.shape, header.start + place.begin) for name, place in header.places.items()
    }
    return TensorFile(tensors, header.metadata)


def _view(data: _Buffer, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> NDArray[Any]:
    count = 1
    for number in shape:
        count *= number
    if count == 0:
        try:
            return np.empty(shape, dtype)
        except ValueError:  # an empty tensor with an impossible dimension
            raise AdapterError("the shape of an empty tensor is impossible", found=list(shape)) from None
    return np.frombuffer(data, dtype, count, offset).reshape(shape)
