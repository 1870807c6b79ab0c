"""Adapters without their values: sites, shapes, ranks and scales from headers alone.

Of a safetensors file the header is read, and of its data only the tensors of up to ``MAX_SMALL`` bytes (alphas and the
like, from which scales are computed). Every other tensor is one NaN seen under its shape: it has no memory behind it,
and asking for its values is an error that says so. Of a hub id nothing else is fetched but the configuration.

Other containers have no header that could be read alone: they are read in full, those of the hub downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter, Note
from lorascope.errors import AdapterError
from lorascope.formats.config_file import read_config
from lorascope.formats.container import container_of
from lorascope.formats.contents import Contents
from lorascope.formats.interpretation import interpreted, placed
from lorascope.formats.safetensors_file import Header, Place, read_header
from lorascope.formats.source import config_beside, contents_of, exists, weights_at
from lorascope.formats.stored_zip import through_stored

MAX_SMALL = 64
"""Bytes of a tensor whose values are read with the header."""

Fetch = Callable[[Sequence[tuple[int, int]]], list[bytes]]
"""(begin, end) of pieces of a file → their bytes."""


def read_headers(location: str | os.PathLike[str], *, format: str | None = None) -> Adapter:
    """The adapter at a path or hub id without the values of its tensors.

    Notes that depend on values (a block-diagonal factor) are not made. The adapter cannot be written.

    Args:
        location: as in ``read``.
        format: the name of a format, where the file itself leaves it open.

    Raises:
        AdapterError: as ``read``.

    >>> import tempfile
    >>> from lorascope.adapter import LowRank
    >>> from lorascope.formats import write
    >>> folder = tempfile.mkdtemp()
    >>> write(Adapter({"q": LowRank(np.ones((400, 2)), np.ones((2, 300)), scale=0.5)}), folder)
    >>> update = read_headers(folder)["q"]
    >>> update.shape, update.rank, update.scale, update.stored["B"].strides
    ((400, 300), 2, 0.5, (0, 0))
    >>> update.norm()
    Traceback (most recent call last):
    lorascope.errors.AdapterError: the values of base_model.model.q.lora_B.weight were not fetched: ...
    """
    with placed(location):
        contents, notes = _contents(location)
        adapter = interpreted(contents, format)
    return replace(adapter, notes=(*adapter.notes, *notes), original=None)


def _contents(location: str | os.PathLike[str]) -> tuple[Contents, list[Note]]:
    if through_stored(location) is not None:
        return contents_of(location), []  # a view of the mapped archive: nothing is read but what is used
    if not exists(location):
        from lorascope.formats.hub import parse_hub_id

        hub_id = parse_hub_id(os.fspath(location))
        if hub_id is not None:
            return _of_hub(hub_id)
    return _local(weights_at(location)), []


def _local(path: Path) -> Contents:
    if container_of(path) != "safetensors":
        return contents_of(path)
    with path.open("rb") as stream:
        header = read_header(stream, os.fstat(stream.fileno()).st_size, path)

        def fetch(pieces: Sequence[tuple[int, int]]) -> list[bytes]:
            found: list[bytes] = []
            for begin, end in pieces:
                stream.seek(begin)
                found.append(stream.read(end - begin))
            return found

        tensors = _tensors(header, fetch)
    config_path = config_beside(path)
    config, text = (None, None) if config_path is None else read_config(config_path)
    return Contents(tensors, header.metadata, config, text, path)


def _of_hub(hub_id: Any) -> tuple[Contents, list[Note]]:
    from lorascope.formats.hub import download, located
    from lorascope.formats.remote_file import NoRangesError, RemoteFile

    found = located(hub_id)
    if isinstance(found, Path):
        return _local(found), []
    try:
        remote = RemoteFile(found)
        header = read_header(remote, remote.size, found)
        tensors = _tensors(header, remote.fetch)
    except NoRangesError as error:
        why = f"{error}: the file was downloaded in full"
        return contents_of(download(hub_id)), [Note("downloaded-in-full", why)]
    config, text = (None, None) if found.config is None else read_config(found.config)
    return Contents(tensors, header.metadata, config, text, Path(str(found))), []


def _tensors(header: Header, fetch: Fetch) -> Mapping[str, NDArray[Any]]:
    small = {name: place for name, place in header.places.items() if 0 < place.end - place.begin <= MAX_SMALL}
    pieces = fetch([(header.start + place.begin, header.start + place.end) for place in small.values()])
    values = {name: _value(place, piece, name) for (name, place), piece in zip(small.items(), pieces, strict=True)}
    return {
        name: values[name] if name in values else placeholder(place.dtype, place.shape)
        for name, place in header.places.items()
    }


def _value(place: Place, piece: bytes, name: str) -> NDArray[Any]:
    if len(piece) != place.end - place.begin:
        raise AdapterError("the file shrank while it was read", key=name)
    return np.frombuffer(piece, place.dtype).reshape(place.shape)


def placeholder(dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A tensor of that shape without memory behind it: NaN everywhere, 0 where the dtype has none.

    >>> tensor = placeholder(np.dtype(np.float16), (1 << 20, 1 << 10))
    >>> tensor.shape, tensor.strides, bool(np.isnan(tensor[0, 0]))
    ((1048576, 1024), (0, 0), True)
    """
    nothing = np.zeros((), dtype) if dtype.kind in "biu" else np.array(np.nan, dtype)
    try:
        return np.broadcast_to(nothing, shape)
    except ValueError:  # an empty tensor with an impossible dimension
        raise AdapterError("the shape of an empty tensor is impossible", found=list(shape)) from None
