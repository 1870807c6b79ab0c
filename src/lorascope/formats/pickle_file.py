"""Pickled weights (``.bin``, ``.pt``): read by ``torch.load(weights_only=True)`` only, and nothing ever executed.

Before PyTorch sees the file its opcodes are scanned with ``pickletools`` (which executes nothing), so that a refused
global is named; there is no second try with fewer checks. Without PyTorch the scan is all that happens.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lorascope.errors import AdapterError, MissingExtraError
from lorascope.formats.contents import TensorFile

MAX_PICKLE = 16 << 20
"""Bytes of opcodes that are scanned; a pickle of tensors is far smaller, its data are elsewhere."""

MAX_FILE = 16 << 30
"""Bytes of a pickled file that are read, since such files cannot be mapped."""

_ROOM = 64 << 20  # what a zip may declare beyond its own size: PyTorch stores its records uncompressed
_PLAIN_GLOBALS = frozenset({"collections.OrderedDict"})
_STRINGS = frozenset(
    {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
)


def read_pickle(path: Path) -> TensorFile:
    """The tensors of a pickled state dict, or of a list, which are then called ``[0]``, ``[1]`` …

    Raises:
        AdapterError: where the pickle refers to anything but tensors, is damaged, or holds something else.
        MissingExtraError: where PyTorch is not installed; its message tells the size and the globals.
    """
    size = path.stat().st_size
    if size > MAX_FILE:
        raise AdapterError("the pickled file is too large", file=path, expected=f"at most {MAX_FILE} bytes", found=size)
    names = list(dict.fromkeys(global_names(path)))
    if foreign := _foreign(names):
        raise AdapterError(
            f"pickle refers to {', '.join(foreign[:5])}: refused, only plain tensors are read",
            file=path,
            hint="a pickle can run any code when it is loaded; ask its author for safetensors",
        )
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            f"reading pickled files needs torch, which is not installed; the file has {size} bytes and "
            f"refers to {', '.join(names) or 'no globals'}",
            file=path,
            hint='pip install torch (the extra "lorascope[learn]" brings it)',
            code="needs-torch",
        ) from error
    try:
        value = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise AdapterError(
            "pickle refused: it holds more than plain tensors, or is no pickle", file=path, found=_reason(error)
        ) from None
    except Exception as error:  # a damaged pickle makes the unpickler fail in whatever way the bytes happen to say
        raise AdapterError("the pickled file is damaged", file=path, found=_first_line(error)) from None
    return TensorFile({name: _to_numpy(name, item, path) for name, item in _items(value, path)}, {}, "pickle")


def foreign_globals(path: Path) -> list[str]:
    """Those of ``global_names`` for which the file would be refused, each once.

    Raises:
        AdapterError: as ``global_names``.
    """
    return _foreign(list(dict.fromkeys(global_names(path))))


def _foreign(names: list[str]) -> list[str]:
    return [name for name in names if not _is_plain(name)]


def global_names(path: Path) -> list[str]:
    """The importable names that the pickles of a file refer to, from their opcodes; nothing is executed.

    Raises:
        AdapterError: where a zip declares far more data than it has, or is damaged.
    """
    with path.open("rb") as stream:
        try:
            if not zipfile.is_zipfile(stream):
                stream.seek(0)
                return list(_scan(stream))
            with zipfile.ZipFile(stream) as archive:
                _check_sizes(archive, path)
                names: list[str] = []
                for member in archive.namelist():
                    if member.endswith(".pkl"):
                        with archive.open(member) as record:
                            names += _scan(cast("BinaryIO", record))
                return names
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
            raise AdapterError("the pickled file is damaged", file=path, found=_first_line(error)) from None


def _check_sizes(archive: zipfile.ZipFile, path: Path) -> None:
    declared = sum(member.file_size for member in archive.infolist())
    allowed = path.stat().st_size + _ROOM
    if declared > allowed:
        raise AdapterError(
            "the archive declares more data than it has", file=path, expected=f"at most {allowed} bytes", found=declared
        )


class _Bounded:
    """A stream that ends after so many bytes, as far as the opcode scan can see."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._left = stream, limit

    def read(self, count: int = -1) -> bytes:
        count = self._left if count < 0 else min(count, self._left)
        data = self._stream.read(count)
        self._left -= len(data)
        return data

    def readline(self) -> bytes:
        data = self._stream.readline(self._left)
        self._left -= len(data)
        return data


def _scan(stream: BinaryIO) -> Iterator[str]:
    bounded = _Bounded(stream, MAX_PICKLE)
    for _ in range(8):  # the old format of PyTorch is five pickles in a row, then raw numbers
        try:
            yield from _scan_one(bounded)
        except Exception:  # pickletools raises many kinds on damaged input; what was seen so far is what counts
            return


def _scan_one(stream: _Bounded) -> Iterator[str]:
    strings: list[str] = []
    memo: dict[str, str] = {}
    for opcode, argument, _ in pickletools.genops(cast("Any", stream)):
        text = str(argument)
        if opcode.name in ("GLOBAL", "INST"):
            yield _dotted(*text.split(" ", 1))
        elif opcode.name == "STACK_GLOBAL":
            yield _dotted(*strings[-2:]) if len(strings) >= 2 else "an unknown global"
        elif opcode.name in _STRINGS:
            strings.append(text)
        elif opcode.name == "MEMOIZE":
            memo[str(len(memo))] = strings[-1] if strings else ""
        elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[text] = strings[-1] if strings else ""
        elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
            strings.append(memo.get(text, ""))


def _dotted(module: str, name: str = "") -> str:
    return f"{'builtins' if module == '__builtin__' else module}.{name}"[:200]


def _is_plain(name: str) -> bool:
    # what of torch is harmless is PyTorch's own decision, made by weights_only
    return name in _PLAIN_GLOBALS or name.startswith("torch.")


def _reason(error: BaseException) -> str:
    """What PyTorch refused, without its advice to load the file unsafely."""
    return (str(error).partition("WeightsUnpickler error:")[2].strip().splitlines() or [type(error).__name__])[0][:200]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:200]


def _items(value: Any, path: Path) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        pairs = list(cast("dict[Any, Any]", value).items())
        if not all(isinstance(name, str) for name, _ in pairs):
            raise AdapterError("the pickle's keys are not all strings", file=path)
        return pairs
    if isinstance(value, list | tuple):
        return [(f"[{index}]", item) for index, item in enumerate(cast("list[Any]", value))]
    raise AdapterError(
        "the pickle holds no tensors by name", file=path, expected="a dict or list", found=type(value).__name__
    )


def _to_numpy(name: str, item: Any, path: Path) -> NDArray[Any]:
    import torch

    if not isinstance(item, torch.Tensor):
        raise AdapterError(
            "the pickle holds something that is no tensor", file=path, key=name, found=type(item).__name__
        )
    tensor = item.detach()
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise AdapterError(
            "only dense tensors are read", file=path, key=name, found=f"{tensor.layout} on {tensor.device}"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise AdapterError(
            "a tensor declares more values than the file holds",
            file=path,
            key=name,
            found=f"shape {list(tensor.shape)}",
        )
    same_width = {
        torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
        torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
        torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
    }
    if tensor.dtype in same_width:
        carrier, dtype = same_width[tensor.dtype]
        array = tensor.view(carrier).numpy().view(dtype)
    else:
        try:
            array = tensor.resolve_conj().resolve_neg().numpy()
        except TypeError:
            raise AdapterError("unknown dtype of a tensor", file=path, key=name, found=tensor.dtype) from None
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view
