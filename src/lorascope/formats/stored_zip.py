"""Many small files in one: a ZIP archive whose members are stored and not compressed, read by mapping it.

    local header | name | extra, so that data begin at a multiple of 64 | data       … for each member
    central directory                                                                 one entry for each
    end record: number of entries, size and place of the directory

The archive is the plain one of PKWARE's APPNOTE.TXT 4.3, which every ZIP tool reads; the extra field is the alignment
field 0xD935 of Android's zipalign. The reader takes this subset and nothing else: no compression, no encryption, no
ZIP64, no comment, no bytes between, and no name that could be a path to elsewhere. So a member is a slice of the file,
and nothing is unpacked, copied or followed to read it.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from lorascope.errors import AdapterError, OutputError

ALIGNMENT = 64
MAX_MEMBERS = 65_534
MAX_BYTES = (1 << 32) - (1 << 28)
"""Larger archives would need ZIP64; the directory has room in what is left."""

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_UTF8 = 0x800
_DATE = 0x21  # 1 January 1980: the same files give the same archive
_PIECE = 1 << 20


@dataclass(frozen=True, eq=False)
class StoredZip:
    """An archive that is open: the name of each member and its bytes, as a view of the mapped file."""

    path: Path
    members: Mapping[str, memoryview]

    @cached_property
    def folders(self) -> Mapping[str, tuple[str, ...]]:
        """Folder → the names of the files in it."""
        found: dict[str, list[str]] = {}
        for member in self.members:
            folder, _, name = member.rpartition("/")
            found.setdefault(folder, []).append(name)
        return {folder: tuple(names) for folder, names in found.items()}


def open_stored(path: Path) -> StoredZip:
    """The archive at ``path``, checked in full before any member is looked at; kept open while it is used.

    Raises:
        AdapterError: where it is not exactly such an archive.
    """
    try:
        facts = path.stat()
        return _opened(path, facts.st_ino, facts.st_mtime_ns, facts.st_size)
    except OSError as error:
        raise AdapterError("the archive cannot be read", file=path, found=error.strerror) from error


def through_stored(location: str | os.PathLike[str]) -> tuple[Path, str] | None:
    """The archive and the name inside it where a path leads through one: ``shards/0.zip/adapters/a``, else None."""
    try:
        path = Path(location)
        if path.exists():
            return None
        for parent in path.parents:
            if parent.suffix == ".zip" and parent.is_file():
                return parent, path.relative_to(parent).as_posix()
    except (OSError, ValueError):  # a name too long, or with a null byte
        return None
    return None


@lru_cache(maxsize=64)
def _opened(path: Path, inode: int, modified: int, size: int) -> StoredZip:
    del inode, modified  # an archive that was replaced is another
    if not path.is_file():
        raise AdapterError("not a regular file", file=path)
    if size < _END.size:
        raise AdapterError("too short for a ZIP archive", file=path, found=f"{size} bytes")
    with path.open("rb") as stream:
        data = memoryview(mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ))
    return StoredZip(path, _members(data, path))


def _members(data: memoryview, path: Path) -> dict[str, memoryview]:
    size = len(data)
    end = size - _END.size
    signature, disk, first_disk, here, count, length, start, comment = _END.unpack_from(data, end)
    if signature != b"PK\x05\x06" or disk or first_disk or comment or here != count:
        raise AdapterError("is not an archive of stored files", file=path, expected="an end record at its end")
    if count > MAX_MEMBERS or start + length != end or length < count * _CENTRAL.size:
        raise AdapterError(
            "the directory of the archive is not where it must be",
            file=path,
            expected=f"{count} entries that end at byte {end}",
            found=f"{length} bytes from byte {start}",
        )
    members: dict[str, memoryview] = {}
    place, reach = start, 0
    for _ in range(count):
        if place + _CENTRAL.size > end:
            raise AdapterError("the directory of the archive is cut off", file=path)
        (signature, _, _, flags, method, _, _, crc, packed, plain, *lengths, _, _, _, offset) = _CENTRAL.unpack_from(
            data, place
        )
        name_length, extra_length, comment_length = lengths
        name_end = place + _CENTRAL.size + name_length
        place = name_end + extra_length + comment_length
        if signature != b"PK\x01\x02" or place > end:
            raise AdapterError("the directory of the archive is damaged", file=path)
        raw = bytes(data[name_end - name_length : name_end])
        name = _name(raw, path)
        if method or flags & ~_UTF8 or packed != plain:
            raise AdapterError(
                "a member is compressed or encrypted", file=path, key=name, expected="stored files alone"
            )
        if name in members:
            raise AdapterError("two members have one name", file=path, key=name)
        if offset != reach:
            raise AdapterError(
                "members overlap, or bytes between them belong to none",
                file=path,
                key=name,
                expected=reach,
                found=offset,
            )
        begin = _data_start(data, offset, start, (raw, crc, plain), path, name)
        reach = begin + plain
        if reach > start:
            raise AdapterError("a member reaches beyond the archive", file=path, key=name)
        members[name] = data[begin:reach]
    if reach != start or place != end:
        raise AdapterError("bytes of the archive belong to no member", file=path)
    return members


def _data_start(
    data: memoryview, offset: int, limit: int, stated: tuple[bytes, int, int], path: Path, name: str
) -> int:
    """Where the data of a member begin; its local header must say what the directory says."""
    if offset + _LOCAL.size <= limit:
        signature, _, flags, method, _, _, crc, packed, plain, name_length, extra = _LOCAL.unpack_from(data, offset)
        begin = offset + _LOCAL.size + name_length
        there = (bytes(data[begin - name_length : begin]), crc, plain)
        if signature == b"PK\x03\x04" and not method and not flags & ~_UTF8 and packed == plain and there == stated:
            return begin + extra
    raise AdapterError("a member is not what the directory says", file=path, key=name)


def _name(raw: bytes, path: Path) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    parts = PurePosixPath(name).parts
    is_plain = name == "/".join(parts) and ".." not in parts and not set(name) & {"\\", "\0"}
    if not name or not is_plain or name.startswith("/") or PureWindowsPath(name).drive:
        raise AdapterError("a member's name is not a plain relative path", file=path, found=ascii(raw[:100]))
    return name


def write_stored(path: Path, files: Iterable[tuple[str, Path]]) -> None:
    """Write an archive of these files, under these names, and make sure that it is on the disk.

    Raises:
        OutputError: where it grows too large, or cannot be written; the caller deletes what is there.
    """
    entries: list[bytes] = []
    with path.open("wb") as stream:
        for name, file in files:
            raw, offset = _name(name.encode("utf-8"), path).encode("utf-8"), stream.tell()
            padding = -(offset + _LOCAL.size + len(raw)) % ALIGNMENT
            padding += ALIGNMENT if 0 < padding < 4 else 0
            extra = struct.pack("<HH", 0xD935, padding - 4) + bytes(padding - 4) if padding else b""
            stream.seek(offset + _LOCAL.size + len(raw) + len(extra))
            crc, size = _copied(file, stream)
            if len(entries) == MAX_MEMBERS or stream.tell() > MAX_BYTES:
                raise OutputError("too much for one archive", file=path, expected=f"at most {MAX_BYTES} bytes")
            behind = stream.tell()
            common = (_UTF8, 0, 0, _DATE, crc, size, size, len(raw))
            stream.seek(offset)
            stream.write(_LOCAL.pack(b"PK\x03\x04", 10, *common, len(extra)) + raw + extra)
            stream.seek(behind)
            entries.append(_CENTRAL.pack(b"PK\x01\x02", 10, 10, *common, 0, 0, 0, 0, 0, offset) + raw)
        start, directory = stream.tell(), b"".join(entries)
        stream.write(directory)
        stream.write(_END.pack(b"PK\x05\x06", 0, 0, len(entries), len(entries), len(directory), start, 0))
        stream.flush()
        os.fsync(stream.fileno())


def _copied(file: Path, stream: BinaryIO) -> tuple[int, int]:
    crc = size = 0
    with file.open("rb") as source:
        while piece := source.read(_PIECE):
            crc, size = zlib.crc32(piece, crc), size + len(piece)
            stream.write(piece)
    return crc, size
