"""An index: the sketches of many adapters in one file, to find adapters by weights without reading them all.

A safetensors file of the tensors

    sketches  float32 [n, 256]      norms  float64 [n]      records  uint8: JSON, what is known of each of the n files

Reading one executes nothing and believes nothing: every shape, number and record is checked. The paths in it are opened
only as adapters, with the reader that trusts no file. Paths below the folder of the index are relative to it, so that
the folder can be moved as a whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import LorascopeError
from lorascope.formats.safetensors_file import read_safetensors, write_safetensors
from lorascope.retrieve import sketch
from lorascope.retrieve.fingerprint import fingerprint
from lorascope.retrieve.sketch import SIZE, Sketch

SCHEMA_VERSION = 1
KIND = "lorascope-index"
_DIMENSIONS = SIZE * SIZE
_MAXIMUM_RECORDS = 1 << 30


@dataclass(frozen=True)
class Entry:
    """A file of an index.

    Args:
        path: of the adapter: a file, a folder or a place in an archive of a packed zoo.
        size, modified: of the weights file, in bytes and nanoseconds.
        header: a hash of the first 64 KiB of the weights and of the configuration beside them.
        sites: how many; ``layers`` is a hash of which.
        base: the base model as the file names it.
        error: why the file could not be read or has no ΔW of its own; it is then in no search.
    """

    path: str
    size: int
    modified: int
    header: str
    sites: int = 0
    layers: str = ""
    base: str | None = None
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Index:
    """``entries``: n + failures, the n readable ones first. ``sketches`` [n, 256] float32, ``norms`` [n] float64."""

    entries: tuple[Entry, ...]
    sketches: NDArray[np.float32]
    norms: NDArray[np.float64]

    @classmethod
    def empty(cls) -> Index:
        """Of nothing."""
        return cls((), np.zeros((0, _DIMENSIONS), np.float32), np.zeros(0))

    @classmethod
    def of(cls, parts: Sequence[tuple[Entry, Sketch | None]]) -> Index:
        """Of entries and their sketches; those without one are failures."""
        good = [(entry, found) for entry, found in parts if found is not None]
        bad = [entry for entry, found in parts if found is None]
        sketches = np.zeros((len(good), _DIMENSIONS), np.float32)
        for place, (_, found) in enumerate(good):
            sketches[place] = found.values
        return cls((*(entry for entry, _ in good), *bad), sketches, np.array([one.norm for _, one in good], np.float64))

    def __len__(self) -> int:
        return len(self.norms)

    @property
    def readable(self) -> tuple[Entry, ...]:
        """The entries that have a sketch, in the order of ``sketches``."""
        return self.entries[: len(self)]

    @property
    def failures(self) -> tuple[Entry, ...]:
        """The entries that have none."""
        return self.entries[len(self) :]

    def sketch(self, place: int) -> Sketch:
        """That of one readable entry."""
        return Sketch(self.sketches[place].astype(np.float64), float(self.norms[place]))

    def fingerprint(self, place: int) -> str:
        """That of one readable entry, up to neighbouring cells."""
        return fingerprint(self.sketch(place))

    def parts(self) -> dict[str, tuple[Entry, Sketch | None]]:
        """Path → entry and sketch."""
        return {
            entry.path: (entry, self.sketch(place) if place < len(self) else None)
            for place, entry in enumerate(self.entries)
        }


def write_index(index: Index, path: Path) -> None:
    """Write an index as one file, whole or not at all.

    Raises:
        OutputError: where it cannot be written.
    """
    folder = path.absolute().parent
    records = [
        {"path": _stated(entry.path, folder)} | {k: v for k, v in dataclasses.asdict(entry).items() if k != "path"}
        for entry in index.entries
    ]
    text = json.dumps({"schema_version": SCHEMA_VERSION, "records": records}).encode()
    tensors = {"sketches": index.sketches, "norms": index.norms, "records": np.frombuffer(text, np.uint8)}
    kind = {"kind": KIND, "schema_version": str(SCHEMA_VERSION), "sketch_version": str(sketch.VERSION)}
    write_safetensors(path, tensors, kind)


def read_index(path: Path) -> Index:
    """The index at a path.

    Raises:
        LorascopeError: where it is none, damaged, or of another version.
    """
    hint = "make one at another place: lorascope index FOLDER -o INDEX"
    if not path.is_file():
        what = "a folder is no index of adapters" if path.is_dir() else "there is no such index"
        raise LorascopeError(what, file=path, hint=hint)
    with path.open("rb") as stream:
        is_other = stream.read(9)[8:] != b"{"  # of a header of safetensors, after its length
    if is_other:
        raise LorascopeError("is no index of adapters", file=path, found="another kind of file", hint=hint)
    file = read_safetensors(path)
    if file.metadata.get("kind") != KIND:
        raise LorascopeError("is no index of adapters", file=path, hint=hint)
    versions = file.metadata.get("schema_version"), file.metadata.get("sketch_version")
    if versions != (str(SCHEMA_VERSION), str(sketch.VERSION)):
        raise LorascopeError(
            "the index was written by another version of lorascope",
            file=path,
            expected=f"version {SCHEMA_VERSION} with sketches of version {sketch.VERSION}",
            found=f"version {str(versions[0])[:20]} with sketches of version {str(versions[1])[:20]}",
            hint="delete it and make it again: lorascope index FOLDER -o INDEX",
        )
    sketches, norms = file.tensors.get("sketches"), file.tensors.get("norms")
    text = file.tensors.get("records")
    if sketches is None or norms is None or text is None or text.dtype != np.uint8 or text.ndim != 1:
        raise _damaged(path, "a tensor is missing")
    if text.size > _MAXIMUM_RECORDS:
        raise _damaged(path, "the records are too long")
    n = len(norms) if norms.ndim == 1 else -1
    if norms.dtype != np.float64 or sketches.dtype != np.float32 or sketches.shape != (n, _DIMENSIONS):
        raise _damaged(path, f"sketches of shape {list(sketches.shape)} and norms of shape {list(norms.shape)}")
    if not (np.isfinite(norms).all() and np.isfinite(sketches).all() and (norms >= 0).all()):
        raise _damaged(path, "a number in it is not finite")
    entries = _entries(text.tobytes(), path)
    if len(entries) < n or any(entry.error is not None for entry in entries[:n]):
        raise _damaged(path, f"{len(entries)} records of {n} sketches")
    return Index(entries, sketches, norms)


def _entries(text: bytes, path: Path) -> tuple[Entry, ...]:
    try:
        records = json.loads(text)["records"]
        folder = path.absolute().parent
        return tuple(_entry(record, folder) for record in records)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, f"records: {type(error).__name__}") from error


def _entry(record: Any, folder: Path) -> Entry:
    texts: list[Any] = [record["path"], record["header"], record["layers"]]
    numbers = [record["size"], record["modified"], record["sites"]]
    optional = [record["base"], record["error"]]
    is_sound = (
        all(isinstance(one, str) for one in texts)
        and all(isinstance(one, int) and not isinstance(one, bool) for one in numbers)
        and all(one is None or isinstance(one, str) for one in optional)
        and texts[0]
        and "\0" not in texts[0]
    )
    if not is_sound:
        raise TypeError("a record is not as it must be")
    return Entry(
        path=os.path.normpath(folder / texts[0]),
        size=numbers[0],
        modified=numbers[1],
        header=texts[1],
        sites=numbers[2],
        layers=texts[2],
        base=optional[0],
        error=optional[1],
    )


def _stated(path: str, folder: Path) -> str:
    """Relative to the folder of the index where it is below it."""
    own = Path(path)
    return own.relative_to(folder).as_posix() if own.is_relative_to(folder) else str(own)


def _damaged(path: Path, found: str) -> LorascopeError:
    return LorascopeError(
        "the index is damaged",
        file=path,
        found=found,
        hint="delete it and make it again: lorascope index FOLDER -o INDEX",
    )


def is_index(path: Path) -> bool:
    """Whether a path is a file that says of itself that it is an index."""
    try:
        return path.is_file() and read_safetensors(path).metadata.get("kind") == KIND
    except (LorascopeError, OSError):
        return False
