"""Small adapter files in memory, in any container: what mutations start from.

A ``Sample`` is tensors, configuration and metadata before they are bytes; ``encoded`` gives the files of its folder as
bytes, ``materialised`` puts them on disk. The encoders check nothing, so that hostile samples can be encoded too.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

CONFIG = "adapter_config.json"

Container = Literal["safetensors", "npz", "torch", "torch-legacy", "gguf"]
"""``torch`` is PyTorch's zip, ``torch-legacy`` its format of five pickles in a row."""


@dataclass(frozen=True)
class Link:
    """A symbolic link in place of a file."""

    target: str


@dataclass(frozen=True)
class Pipe:
    """A named pipe in place of a file."""


Entry = bytes | Link | Pipe
Files = Mapping[str, Entry]
"""The files of one folder by name."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An adapter before it is bytes.

    Args:
        name: unique in a corpus.
        format: the name of the format that it is read as.
        tensors: name → tensor; names such as ``[0]`` are lost where ``is_list``.
        container: how the tensors are stored.
        file: the name of the weights file.
        config: the configuration beside it, None for none.
        metadata: strings inside the weights file; for GGUF the fields, numbers included.
        is_list: a pickled list and not a dict.
    """

    name: str
    format: str
    tensors: Mapping[str, NDArray[Any]]
    container: Container = "safetensors"
    file: str = "adapter_model.safetensors"
    config: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_list: bool = False


def encoded(sample: Sample) -> dict[str, Entry]:
    """The files of a sample.

    >>> files = encoded(Sample("x", "peft", {"q.lora_A.weight": np.ones((1, 2), np.float32)}, config={"r": 1}))
    >>> sorted(files), len(files["adapter_config.json"])
    (['adapter_config.json', 'adapter_model.safetensors'], 8)
    """
    files: dict[str, Entry] = {sample.file: _ENCODERS[sample.container](sample)}
    if sample.config is not None:
        files[CONFIG] = json.dumps(sample.config).encode("utf-8", "surrogatepass")
    return files


def materialised(files: Files, folder: Path) -> None:
    """Put the files into a folder, which is emptied first.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> materialised({"a": b"x", "b": Link("a")}, folder)
    >>> materialised({"b": b"y"}, folder)
    >>> [(path.name, path.read_bytes()) for path in folder.iterdir()]
    [('b', b'y')]
    """
    place = os.fspath(folder)
    for name in os.listdir(place):  # noqa: PTH208 (thousands of times a second)
        os.unlink(f"{place}/{name}")  # noqa: PTH108
    for name, entry in files.items():
        path = f"{place}/{name}"
        if isinstance(entry, bytes):
            with open(path, "wb", buffering=0) as stream:  # noqa: PTH123
                stream.write(entry)
        elif isinstance(entry, Link):
            os.symlink(entry.target, path)  # noqa: PTH211
        else:
            os.mkfifo(path)


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    """A safetensors file of a header, given as JSON text or as what is to be JSON, and its data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


DTYPES: Mapping[str, str] = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}
"""NumPy's names of dtypes → those of safetensors."""


def _safetensors(sample: Sample) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(sample.metadata)} if sample.metadata else {}
    end, parts = 0, list[bytes]()
    for name, tensor in sample.tensors.items():
        data = tensor.tobytes()
        header[name] = {
            "dtype": DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + len(data)],
        }
        end += len(data)
        parts.append(data)
    return safetensors_bytes(header, b"".join(parts))


def npy_bytes(tensor: NDArray[Any]) -> bytes:
    """One array as a ``.npy`` member; dtypes that NumPy does not store become float32."""
    stream = io.BytesIO()
    plain = tensor if tensor.dtype.kind in "fiubc" else tensor.astype(np.float32)
    np.lib.format.write_array(stream, plain, allow_pickle=False)
    return stream.getvalue()


def zip_bytes(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            printable = name.encode("utf-8", "replace").decode()  # zipfile cannot write lone surrogates
            archive.writestr(zipfile.ZipInfo(printable, (1980, 1, 1, 0, 0, 0)), data, compression)
    return stream.getvalue()


def _npz(sample: Sample) -> bytes:
    return zip_bytes({f"{name}.npy": npy_bytes(tensor) for name, tensor in sample.tensors.items()})


def _torch(sample: Sample) -> bytes:
    import torch

    same_width: Mapping[str, tuple[Any, Any]] = {
        "bfloat16": (np.int16, torch.bfloat16),
        "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
        "float8_e5m2": (np.uint8, torch.float8_e5m2),
    }

    def tensor_of(array: NDArray[Any]) -> Any:
        dense = np.array(array)  # a copy: PyTorch warns of arrays that cannot be written to
        if dense.dtype.name in same_width:
            carrier, dtype = same_width[dense.dtype.name]
            return torch.from_numpy(dense.view(carrier)).view(dtype)
        return torch.from_numpy(dense)

    items = {name: tensor_of(array) for name, array in sample.tensors.items()}
    value = list(items.values()) if sample.is_list else items
    stream = io.BytesIO()
    if sample.container == "torch":
        torch.save(value, stream)
    else:
        _save_as_before(value, stream)
    return stream.getvalue()


def _save_as_before(value: Any, stream: io.BytesIO) -> None:
    """PyTorch's old format; its own writer names storages by their addresses, which are others in every process."""
    import torch

    storages: dict[str, Any] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if not isinstance(obj, torch.storage.TypedStorage):
                return None
            key = f"{len(storages):06d}"
            storages[key] = obj
            return ("storage", getattr(torch, obj._pickle_storage_type()), key, "cpu", obj._size(), None)

    for head in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):
        pickle.dump(head, stream, 2)
    Pickler(stream, 2).dump(value)
    pickle.dump(list(storages), stream, 2)
    for storage in storages.values():
        stream.write(struct.pack("<q", storage._size()))
        raw = torch.tensor([], dtype=torch.uint8).set_(storage._untyped_storage)
        stream.write(raw.numpy().tobytes())


def as_dtype(tensor: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """The tensor in another dtype, out of range or not; of complex numbers the real part."""
    with np.errstate(all="ignore"):
        return (np.real(tensor) if tensor.dtype.kind == "c" and np.dtype(dtype).kind != "c" else tensor).astype(dtype)


_GGML = {"float32": 0, "float16": 1, "float64": 28, "bfloat16": 30}


def _gguf(sample: Sample) -> bytes:
    def text(value: str) -> bytes:
        data = value.encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(data)) + data

    def value_of(value: Any) -> bytes:
        if isinstance(value, bool):
            return struct.pack("<IB", 7, value)
        if isinstance(value, int):
            return struct.pack("<Iq", 11, max(min(value, (1 << 63) - 1), -(1 << 63)))
        if isinstance(value, float):
            return struct.pack("<Id", 12, value)
        return struct.pack("<I", 8) + text(str(value))

    fields = b"".join(text(name) + value_of(value) for name, value in sample.metadata.items())
    infos, data = b"", b""
    for name, tensor in sample.tensors.items():
        stored = tensor if tensor.dtype.name in _GGML else as_dtype(tensor, np.float32)
        data += b"\0" * (-len(data) % 32)
        infos += text(name) + struct.pack(f"<I{stored.ndim}Q", stored.ndim, *stored.shape[::-1])
        infos += struct.pack("<IQ", _GGML[stored.dtype.name], len(data))
        data += stored.tobytes()
    head = b"GGUF" + struct.pack("<IQQ", 3, len(sample.tensors), len(sample.metadata)) + fields + infos
    return head + b"\0" * (-len(head) % 32) + data


_ENCODERS = {"safetensors": _safetensors, "npz": _npz, "torch": _torch, "torch-legacy": _torch, "gguf": _gguf}


def random_values(seed: int, *shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    """Normal numbers; shapes beyond 2²² numbers are cut along their first axis."""
    count = math.prod(shape)
    if count > 1 << 22:
        shape = (max((1 << 22) * shape[0] // count, 1), *shape[1:])
    values = np.random.default_rng(seed).standard_normal(min(math.prod(shape), 4096))
    return np.resize(values, shape).astype(dtype)


FLOATS: tuple[Any, ...] = (
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    np.float64,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
)
"""The floating dtypes of adapter files."""
