"""Files of adapters: read any of them exactly, write them back without loss.

    read(path or hub id) → Adapter        write(adapter, path, format=…)        find(folder) → paths of adapters

Three stages, each in its own modules: ``source`` (which files), ``container`` (bytes → tensors, nothing trusted) and
``grammars`` (tensor names → sites), one file a grammar, found by ``registry``.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from numpy.typing import DTypeLike

from lorascope.adapter import Adapter
from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats.dtypes import floating_dtype
from lorascope.formats.given_scale import with_given_scale
from lorascope.formats.registry import STATED, Evidence, Format, format_named, formats, recognised
from lorascope.formats.source import contents_of, find, is_adapter

__all__ = ["Format", "find", "format_named", "formats", "is_adapter", "read", "write"]


def read(location: str | os.PathLike[str], *, format: str | None = None, scale: float | None = None) -> Adapter:
    """The adapter at a path, in a folder, or on the hub (``owner/name[@revision][:subfolder]``).

    Reading is lazy: the factors are views of the mapped file in its own dtype (scalars such as alpha are read).
    An existing local path always wins over a hub id.

    Args:
        location: what to read.
        format: the name of a format, where the file itself leaves it open.
        scale: the scale of the sites whose scale the file does not state (loralib, MLX without its configuration).

    Raises:
        AdapterError: where it is not an adapter that can be read exactly; it says what was found instead.
        MissingExtraError: for pickled files without PyTorch.

    >>> import tempfile, numpy as np
    >>> from lorascope.adapter import LowRank
    >>> folder = tempfile.mkdtemp()
    >>> write(Adapter({"q": LowRank(np.ones((4, 2)), np.ones((2, 3)), scale=0.5)}), folder)
    >>> adapter = read(folder)
    >>> adapter["q"].shape, adapter["q"].scale, adapter.provenance.format
    ((4, 3), 0.5, 'peft')
    """
    try:
        contents = contents_of(location)
        if format is None:
            member, evidence = recognised(contents)
        else:
            member, evidence = format_named(format), Evidence(STATED, "the format was given")
        if member.read is None:
            raise AdapterError(
                f"{member.title} is recognised, but not read by this version",
                file=contents.path,
                hint="this version reads " + ", ".join(one.name for one in formats() if one.read),
            )
    except LorascopeError as error:
        error.file = error.file or str(location)
        raise
    except OSError as error:
        raise AdapterError("the file cannot be read", file=location, found=error.strerror) from error
    try:
        adapter = member.read(contents)
    except AdapterError as error:
        error.file = error.file or str(contents.path)
        raise
    if scale is not None:
        adapter = with_given_scale(adapter, scale)
    provenance = replace(adapter.provenance, evidence=evidence.reason)
    return replace(adapter, provenance=provenance, original=contents.tensors)


def write(
    adapter: Adapter, path: str | os.PathLike[str], *, format: str = "peft", dtype: DTypeLike | None = None
) -> None:
    """Write an adapter: a folder for ``peft``, one file for the others, whole or not at all.

    An adapter that was read from this format and not edited is written back without loss: the same tensors bit
    for bit, unknown ones included, the same metadata and configuration.

    Args:
        adapter: what to write.
        path: where; parent folders of a PEFT folder are made.
        format: a format that this version writes.
        dtype: the dtype of the factors, such as ``"bfloat16"``; as stored if None.

    Raises:
        AdapterError: where the format cannot hold the adapter exactly.
        OutputError: where the path cannot be written; nothing is left behind.
    """
    member = format_named(format)
    if member.write is None:
        raise AdapterError(
            f"{member.title} is not written by this version",
            expected=", ".join(one.name for one in formats() if one.write),
            found=format,
        )
    member.write(adapter, Path(path), None if dtype is None else floating_dtype(dtype))
