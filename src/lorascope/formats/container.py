"""Which container a weights file is, told from its first bytes and not from its name."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from lorascope.errors import AdapterError
from lorascope.formats.contents import TensorFile

_POINTER = b"version https://git-lfs"
_TEXT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".gguf")


def read_container(path: Path) -> TensorFile:
    """The tensors of a weights file of any container that this version reads.

    Raises:
        AdapterError: saying what the file is instead: empty, a Git LFS pointer, a web page, damaged …
    """
    try:
        return _read(path)
    except OSError as error:
        raise AdapterError(f"the file cannot be read: {error.strerror or error}", file=path) from error


def _read(path: Path) -> TensorFile:
    match container_of(path):
        case "gguf":
            from lorascope.formats.gguf_file import read_gguf

            return read_gguf(path)
        case "npz":
            from lorascope.formats.npz_file import read_npz

            return read_npz(path)
        case "pickle":
            from lorascope.formats.pickle_file import read_pickle

            return read_pickle(path)
        case "safetensors":
            from lorascope.formats.safetensors_file import read_safetensors

            return read_safetensors(path)


def container_of(path: Path) -> Literal["gguf", "npz", "pickle", "safetensors"]:
    """The container that the first bytes speak of; safetensors where they speak of none.

    Raises:
        AdapterError: saying what the file is instead: empty, a Git LFS pointer, a web page …
    """
    if not path.is_file():  # a pipe or a device would never end
        raise AdapterError("not a regular file", file=path)
    if not path.stat().st_size:  # the system's own files say 0 too, and reading some of them never ends
        raise _empty(path)
    with path.open("rb") as stream:
        start = stream.read(1024)
    _check_start(start, path)
    if start.startswith(b"GGUF"):
        return "gguf"
    if start.startswith(b"PK\x03\x04"):
        return "npz" if _is_npz(path) else "pickle"
    return "pickle" if _is_pickle(start, path) else "safetensors"


def _check_start(start: bytes, path: Path) -> None:
    if not start:
        raise _empty(path)
    if start.startswith(_POINTER):
        raise _pointer_error(start, path)
    if start[:4] in (b"ggla", b"algg"):
        raise AdapterError("an obsolete llama.cpp adapter (ggla), which nothing reads any more", file=path)
    if start[8:9] == b"{":  # a safetensors header: its length before may look like any text
        return
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise AdapterError(
            "a web page saved under the name of weights", file=path, hint="download the raw file, not its page"
        )
    if text.startswith((b"{", b"[")) and path.suffix.lower() in _TEXT_SUFFIXES:
        raise AdapterError("a JSON text saved under the name of weights", file=path, hint="download the file again")


def _empty(path: Path) -> AdapterError:
    return AdapterError("the file is empty", file=path, hint="download it again")


def _pointer_error(start: bytes, path: Path) -> AdapterError:
    text = start.decode("utf-8", "replace")
    size = re.search(r"^size (\d{1,20})\s*$", text, re.MULTILINE)
    oid = re.search(r"^oid (\S{1,100})\s*$", text, re.MULTILINE)
    real = f" (the real file has {size[1]} bytes)" if size else ""
    return AdapterError(
        f"Git LFS pointer, not weights{real}",
        file=path,
        found=oid[1] if oid else None,
        hint="run `git lfs pull` in the repository, or download the file itself",
        code="lfs-pointer",
    )


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return path.suffix.lower() == ".npz"
    return bool(names) and all(name.endswith(".npy") for name in names)


def _is_pickle(start: bytes, path: Path) -> bool:
    # a safetensors file whose header begins with byte 0x80 has its opening brace at byte 8, a pickle has not
    if start[:1] == b"\x80" and start[8:9] != b"{":
        return True
    is_named_so = path.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
    return is_named_so and start[8:9] != b"{"
