"""Writing a safetensors file so that only one tensor, or the tensors of one site, are in memory at a time.

8 bytes, little-endian: N | N bytes of JSON, padded with spaces to a multiple of 8 | data, without gaps
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, ParamSpec

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import AdapterError
from lorascope.formats.contents import Tensors
from lorascope.formats.dtypes import dtype_name
from lorascope.formats.output_file import replaced_file

P = ParamSpec("P")

Unit = Callable[[], Mapping[str, NDArray[Any]]]
"""Makes some tensors of a file, the same ones at each call: those of one site, which may have to be worked out."""


class Slot(NamedTuple):
    """A tensor that is to come: its name, dtype and shape."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its data."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


def units_of(tensors: Tensors) -> list[Unit]:
    """One unit for each tensor that is there."""
    return [lambda name=name, tensor=tensor: {name: tensor} for name, tensor in tensors.items()]


def site_unit(
    site: str, make: Callable[P, Mapping[str, NDArray[Any]]], /, *arguments: P.args, **options: P.kwargs
) -> Unit:
    """A unit of the tensors that ``make`` gives for one site, whose errors name it.

    >>> from lorascope.formats.dtypes import cast_to
    >>> site_unit("q", lambda x: {"q.B": cast_to(x, "float16")}, np.full(1, 1e9))()
    Traceback (most recent call last):
    lorascope.errors.AdapterError: q: a value is too large for the dtype asked for (found float16)
    """

    def unit() -> Mapping[str, NDArray[Any]]:
        try:
            return make(*arguments, **options)
        except AdapterError as error:
            error.key = error.key or site
            raise

    return unit


def write_units(path: Path, units: Sequence[Unit], metadata: Mapping[str, str] | None = None) -> None:
    """Write the tensors of all units, whole or not at all.

    Every unit is called twice, first for the header and then for the data, and what it gave is let go at once. The
    tensors lie in the order of the reference writer, the widest dtypes first, so that all of them are aligned.

    Raises:
        AdapterError: where two tensors have one name, or one has no values, since only headers were read.
        OutputError: where the file cannot be written; nothing is left behind.

    >>> import tempfile
    >>> from lorascope.formats.safetensors_file import read_safetensors
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> write_units(path, [lambda: {"x": np.ones(2, np.float16)}, lambda: {"y": np.zeros(1, np.float32)}])
    >>> {name: tensor.tolist() for name, tensor in read_safetensors(path).tensors.items()}
    {'y': [0.0], 'x': [1.0, 1.0]}
    """
    slots: dict[str, Slot] = {}
    for unit in units:
        for name, tensor in unit().items():
            if name in slots:
                raise AdapterError("two tensors of the file would have one name", key=name)
            if is_placeholder(tensor):
                raise AdapterError(
                    "the values were not fetched: only headers were read", key=name, hint="read the adapter in full"
                )
            slots[name] = Slot(name, tensor.dtype, tensor.shape)
    ordered = sorted(slots.values(), key=lambda slot: (-slot.dtype.itemsize, dtype_name(slot.dtype), slot.name))
    places: dict[str, int] = {}
    reach = 0
    for slot in ordered:
        places[slot.name] = reach
        reach += slot.nbytes
    with replaced_file(path) as temporary, temporary.open("wb") as stream:
        start = _write_header(stream, ordered, metadata)
        for unit in units:
            for name, tensor in unit().items():
                stream.seek(start + places[name])
                _write_data(stream, slots[name], tensor)


def write_streamed(
    path: Path, slots: Iterable[Slot], tensors: Iterable[NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write the tensors, which come one after another in the order, dtypes and shapes of ``slots``.

    A tensor may come in blocks of its first axis, so that it is never in memory as a whole.

    Raises:
        ValueError: where a tensor or block is not what its slot announced.

    >>> import tempfile
    >>> from lorascope.formats.safetensors_file import read_safetensors
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> write_streamed(path, [Slot("x", np.dtype("float16"), (2,))], iter([np.ones(2, np.float16)]))
    >>> read_safetensors(path).tensors["x"].tolist()
    [1.0, 1.0]
    """
    announced = list(slots)
    blocks = iter(tensors)
    with path.open("wb") as stream:
        _write_header(stream, announced, metadata)
        for slot in announced:
            _write_blocks(stream, slot, blocks)
        if next(blocks, None) is not None:
            raise ValueError("more tensors came than were announced")


def _write_header(stream: BinaryIO, slots: Iterable[Slot], metadata: Mapping[str, str] | None) -> int:
    """Write the header; the place where the data begin."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for slot in slots:
        begin, end = end, end + slot.nbytes
        header[slot.name] = {
            "dtype": dtype_name(slot.dtype),
            "shape": list(slot.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little"))
    stream.write(text)
    return 8 + len(text)


def _write_blocks(stream: BinaryIO, slot: Slot, blocks: Iterator[NDArray[Any]]) -> None:
    """Write one tensor from the blocks of its rows; an empty one, or one without axes, is one block."""
    rows = slot.shape[0] if slot.nbytes and slot.shape else 0
    written = 0
    while not written or written < rows:
        block = next(blocks, None)
        if block is None:
            raise ValueError(f"{slot.name}: announced {slot.shape}, got {written} rows")
        is_part = 0 < block.size and block.ndim == len(slot.shape) and 0 < len(block) <= rows - written
        _write_data(stream, slot._replace(shape=(len(block), *slot.shape[1:])) if is_part else slot, block)
        written += len(block) if is_part else max(rows, 1)


def _write_data(stream: BinaryIO, slot: Slot, tensor: NDArray[Any]) -> None:
    if tensor.dtype != slot.dtype or tensor.shape != slot.shape:
        raise ValueError(f"{slot.name}: announced {slot.dtype} {slot.shape}, got {tensor.dtype} {tensor.shape}")
    stream.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)


def is_placeholder(tensor: NDArray[Any]) -> bool:
    """Whether a tensor stands for one whose values were not read: one NaN seen under a whole shape."""
    if tensor.size < 2 or any(tensor.strides) or tensor.dtype.kind in "biu":
        return False
    return bool(np.isnan(tensor[(0,) * tensor.ndim]))
