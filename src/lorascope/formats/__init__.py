"""Files of adapters: read any of them exactly, write them back without loss.

    read(path or hub id) → Adapter        write(adapter, path, format=…)        find(folder) → paths of adapters

Three stages, each in its own modules: ``source`` (which files), ``container`` (bytes → tensors, nothing trusted) and
``grammars`` (tensor names → sites), one file a grammar, found by ``registry``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike

from lorascope.adapter import Adapter
from lorascope.formats.dtypes import floating_dtype
from lorascope.formats.given_scale import with_given_scale
from lorascope.formats.interpretation import interpreted, placed
from lorascope.formats.mapping import from_tensors
from lorascope.formats.registry import Format, format_named, formats, written_format
from lorascope.formats.series import Series, read_series
from lorascope.formats.source import beside, contents_of, find, is_adapter

__all__ = [
    "Format",
    "Series",
    "beside",
    "find",
    "format_named",
    "formats",
    "from_tensors",
    "is_adapter",
    "read",
    "read_series",
    "write",
    "written_format",
]


def read(
    location: str | os.PathLike[str],
    *,
    format: str | None = None,
    scale: float | None = None,
    mapping: Mapping[str, Any] | None = None,
    base_config: Mapping[str, Any] | None = None,
) -> Adapter:
    """The adapter at a path, in a folder, or on the hub (``owner/name[@revision][:subfolder]``).

    Reading is lazy: the factors are views of the mapped file in its own dtype (scalars such as alpha are read).
    An existing local path always wins over a hub id.

    Args:
        location: what to read.
        format: the name of a format, where the file itself leaves it open.
        mapping: which tensors of the file make which site, for files whose names no format knows; see
            ``from_tensors``, which also takes dictionaries of arrays.
        scale: the scale of the sites whose scale the file does not state (loralib, MLX without its configuration).
        base_config: what is known of the base model's ``config.json``; GGUF files need its numbers of heads, which
            few of them state, to name q and k of llama-type models.

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
    if mapping is not None:
        adapter = from_tensors(location, mapping)
        return adapter if scale is None else with_given_scale(adapter, scale)
    with placed(location):
        contents = replace(contents_of(location), base_config=dict(base_config or {}))
        adapter = replace(interpreted(contents, format), original=contents.tensors)
    return adapter if scale is None else with_given_scale(adapter, scale)


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
    member = written_format(format)
    assert member.write is not None
    member.write(adapter, Path(path), None if dtype is None else floating_dtype(dtype))
