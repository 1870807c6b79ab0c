"""Files of labels that someone else wrote: bounded, typed cell by cell, and no pickle that holds more than plain data.

csv     one line a row, streamed; a cell that is no number is an error that names file, line and column
json    an object of at most one megabyte
pickle  lists, numbers and tensors alone: its opcodes are scanned first, then ``torch.load(weights_only=True)``
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorascope.errors import AdapterError, MissingExtraError, ZooError
from lorascope.formats.config_file import read_config
from lorascope.formats.pickle_file import foreign_globals
from lorascope.zoo.regular import open_regular

MAXIMUM_BYTES = 256 << 20
"""Bytes of a table; the largest that is published, CelebA's attributes, has 27 million."""

MAXIMUM_COLUMNS = 2_000
MAXIMUM_TEXT = 4 << 10
"""Bytes of a text file that holds one number."""


class Line:
    """One line of a table: its cells by column, and where it stands, for messages."""

    def __init__(self, file: Path, number: int, places: Mapping[str, int], cells: Sequence[str]) -> None:
        self.file, self.number, self._places, self._cells = file, number, places, cells

    def text(self, name: str) -> str | None:
        """The cell as text, None where it is empty or there is no such column."""
        place = self._places.get(name)
        return None if place is None else self._cells[place].strip() or None

    def integer(self, name: str) -> int | None:
        """The cell as an integer, also where it is written ``3.0``."""
        number = self.number_of(name)
        if number is None:
            return None
        if number != int(number) or abs(number) >= 2**53:
            raise self.error(name, "an integer")
        return int(number)

    def number_of(self, name: str) -> float | None:
        """The cell as a finite number, None where it is empty or ``nan``, which a failed run leaves."""
        cell = self.text(name)
        if cell is None or cell.lower() in ("nan", "none"):
            return None
        try:
            number = float(cell)
        except ValueError:
            raise self.error(name, "a number") from None
        return number if math.isfinite(number) else None

    def is_set(self, name: str) -> bool | None:
        """A binary attribute, written as 1 and 0 or 1 and -1 or ``True`` and ``False``."""
        cell = self.text(name)
        if cell is None:
            return None
        known = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "-1": False, "-1.0": False}
        found = {**known, "false": False}.get(cell.lower())
        if found is None:
            raise self.error(name, "1 and 0, or 1 and -1")
        return found

    def error(self, name: str, expected: str) -> ZooError:
        """The error of a cell."""
        return ZooError(
            "a cell is not what its column holds",
            file=self.file,
            key=f"line {self.number}, {name[:80]}",
            expected=expected,
            found=(self.text(name) or "")[:60],
        )


class Table:
    """A CSV file with a header line: ``names``, and its lines by iterating, once and again.

    Raises:
        ZooError: where it is no CSV file in UTF-8, too large, or lacks a column that is ``needed``.
    """

    def __init__(self, file: Path, needed: Sequence[str] = ()) -> None:
        self.file = file
        size = _size(file, MAXIMUM_BYTES)
        if not size:
            raise ZooError("the table is empty", file=file)
        with self._cells() as cells:
            self.names = [name.strip() for name in next(cells.rows, [])]
        if len(set(self.names)) != len(self.names) or not self.names or len(self.names) > MAXIMUM_COLUMNS:
            raise ZooError(
                "the header line needs one distinct name per column",
                file=file,
                expected=f"at most {MAXIMUM_COLUMNS}",
                found=len(self.names),
            )
        if lacking := [name for name in needed if name not in self.names]:
            raise ZooError(
                "columns are missing", file=file, expected=", ".join(lacking), found=", ".join(self.names)[:200]
            )

    def __iter__(self) -> Iterator[Line]:
        places = {name: place for place, name in enumerate(self.names)}
        with self._cells() as cells:
            next(cells.rows, None)
            for row in cells.rows:
                if not row:
                    continue
                if len(row) != len(self.names):
                    raise ZooError(
                        "a line has another number of cells than the header",
                        file=self.file,
                        key=f"line {cells.reader.line_num}",
                        expected=len(self.names),
                        found=len(row),
                    )
                yield Line(self.file, cells.reader.line_num, places, row)

    def _cells(self) -> _Cells:
        return _Cells(self.file)


class _Cells:
    """An open CSV file whose errors are those of a table."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            descriptor = open_regular(file, os.O_RDONLY, follow=True)
        except OSError as error:
            raise ZooError("the labels cannot be read", file=file, found=error.strerror) from error
        self._stream = os.fdopen(descriptor, newline="", encoding="utf-8-sig")
        self.reader = csv.reader(self._stream, strict=True)
        self.rows = self._rows()

    def __enter__(self) -> _Cells:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def _rows(self) -> Iterator[list[str]]:
        try:
            yield from self.reader
        except (csv.Error, UnicodeDecodeError) as error:
            raise ZooError("is not a CSV file in UTF-8", file=self._file, found=error) from error


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ZooError: where it is none, or larger than a megabyte.
    """
    _size(file, 1 << 20)
    try:
        return read_config(file)[0]
    except AdapterError as error:
        raise ZooError(error.what, file=file, expected=error.expected, found=error.found) from error


def read_number(file: Path) -> float:
    """The one number that a text file holds.

    Raises:
        ZooError: where it holds something else.
    """
    _size(file, MAXIMUM_TEXT)
    with os.fdopen(open_regular(file, os.O_RDONLY, follow=True), "rb") as stream:
        raw = stream.read(MAXIMUM_TEXT)
    try:
        number = float(raw)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ZooError("is not one finite number", file=file, found=ascii(raw[:40]))
    return number


def read_plain_pickle(file: Path, limit: int = 64 << 20, *, mapped: bool = False) -> Any:
    """What ``torch.save`` made of lists, dictionaries, numbers, words and tensors; nothing else is read.

    Args:
        file: the pickled file.
        limit: the bytes that it may have.
        mapped: the tensors are views of the mapped file, and take no memory until they are looked at.

    Raises:
        ZooError: where it refers to anything else, is damaged or too large.
        MissingExtraError: without PyTorch.
    """
    _size(file, limit)
    try:
        foreign = foreign_globals(file)
    except AdapterError as error:
        raise ZooError(error.what, file=file, found=error.found) from error
    if foreign:
        raise ZooError(
            f"pickle refers to {', '.join(foreign[:5])}: refused, only plain data are read",
            file=file,
            hint="a pickle can run any code when it is loaded",
        )
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError.of("torch", "learn", f"reading {file.name}") from error
    try:
        return torch.load(file, weights_only=True, map_location="cpu", mmap=mapped)
    except Exception as error:  # a damaged pickle makes the unpickler fail in whatever way the bytes happen to say
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ZooError("the pickled file is damaged, or holds more than plain data", file=file, found=reason) from None


def read_names(file: Path) -> list[str]:
    """A pickled list of names.

    Raises:
        ZooError: where it is no such list.
    """
    names = read_plain_pickle(file)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ZooError("is not a list of names", file=file, found=type(names).__name__)
    return names


def _size(file: Path, limit: int) -> int:
    if not file.is_file():
        raise ZooError("the labels cannot be read", file=file, found="no regular file")
    size = file.stat().st_size
    if size > limit:
        raise ZooError("the file of labels is too large", file=file, expected=f"at most {limit} bytes", found=size)
    return size
