"""NumPy archives (``.npz``): bounded, and never with pickled objects."""

from __future__ import annotations

import lzma
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import AdapterError
from lorascope.formats.contents import TensorFile

MAX_ARCHIVE = 16 << 30
"""Bytes that an archive may declare; its arrays are read, not mapped."""

_ROOM, _MAX_RATIO = 64 << 20, 16  # trained numbers hardly shrink; a small archive that unfolds to gigabytes is a bomb


def read_npz(path: Path) -> TensorFile:
    """The arrays of a NumPy archive.

    Raises:
        AdapterError: where the archive is damaged, declares too much, or holds arrays of objects.
    """
    tensors: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            declared = sum(member.file_size for member in members)
            if declared > min(MAX_ARCHIVE, _ROOM + _MAX_RATIO * path.stat().st_size):
                raise AdapterError("the archive declares too much data", file=path, found=f"{declared} bytes")
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in tensors:
                    raise AdapterError("two arrays have the same name", file=path, key=name)
                tensors[name] = _array(archive, member, path, name)
    except _DAMAGE as error:
        raise AdapterError("the npz archive is damaged", file=path, found=str(error)[:200]) from None
    return TensorFile(tensors, {}, "npz")


_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ArithmeticError,
    LookupError,
    SyntaxError,
    TypeError,
    ValueError,
    MemoryError,  # too deeply nested a header
    tokenize.TokenError,
)
"""What zipfile and NumPy raise on damaged archives and headers."""


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, name: str) -> NDArray[Any]:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        if dtype.hasobject:
            raise AdapterError("npz array of objects: refused (allow_pickle stays off)", file=path, key=name)
        count = 1
        for length in shape:
            count *= length
        if count < 0 or count * dtype.itemsize > member.file_size:
            raise AdapterError(
                f"truncated: the array {name} says more than its bytes hold",
                file=path,
                key=name,
                expected=f"{count * dtype.itemsize} bytes",
                found=f"{member.file_size} bytes",
            )
        data = stream.read(count * dtype.itemsize)
    array = np.frombuffer(data, dtype, count) if count else np.empty(0, dtype)
    return array.reshape(shape, order="F" if fortran else "C")
