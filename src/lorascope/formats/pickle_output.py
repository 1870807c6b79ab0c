"""Pickled state dicts and lists of tensors, as ``torch.save`` writes them: for libraries that load nothing else."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import AdapterError, MissingExtraError
from lorascope.formats.output_file import replaced_file
from lorascope.formats.stream_file import is_placeholder

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
"""The suffixes that such files have."""


def write_pickle(path: Path, tensors: Mapping[str, NDArray[Any]] | Sequence[NDArray[Any]]) -> None:
    """Write a dict of tensors by name, or a list of tensors, whole or not at all.

    Raises:
        AdapterError: where a tensor has no values, since only headers were read.
        MissingExtraError: where PyTorch is not installed.
        OutputError: where the file cannot be written; nothing is left behind.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError.of("torch", "learn", "writing pickled files") from error
    value: dict[str, Any] | list[Any]
    if isinstance(tensors, Mapping):
        value = {name: _to_torch(name, tensor) for name, tensor in tensors.items()}
    else:
        value = [_to_torch(f"[{index}]", tensor) for index, tensor in enumerate(tensors)]
    with replaced_file(path) as temporary:
        torch.save(value, temporary)


def _to_torch(name: str, tensor: NDArray[Any]) -> Any:
    torch: Any = importlib.import_module("torch")  # its annotations are not complete
    if is_placeholder(tensor):
        raise AdapterError(
            "the values were not fetched: only headers were read", key=name, hint="read the adapter in full"
        )
    same_width: dict[str, tuple[Any, Any]] = {
        "bfloat16": (np.int16, torch.bfloat16),
        "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
        "float8_e5m2": (np.uint8, torch.float8_e5m2),
    }
    dense = np.array(tensor, order="C")  # a copy: PyTorch warns of arrays that cannot be written to
    if tensor.dtype.name in same_width:
        carrier, dtype = same_width[tensor.dtype.name]
        return torch.from_numpy(dense.view(carrier)).view(dtype)
    return torch.from_numpy(dense)
