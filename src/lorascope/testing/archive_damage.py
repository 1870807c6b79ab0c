"""Damage to zip archives and pickles: archives that declare more than they hold, pickles that want to run code.

A pickle that does run leaves a file called ``MARKER`` in the working directory.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, cast

import numpy as np

from lorascope.testing.damage import ABSURD, Damage, flip, weights_of
from lorascope.testing.samples import Entry, npy_bytes, zip_bytes

MARKER = "lorascope-code-was-run"


def _archive(change: Callable[[Random, dict[str, bytes]], bytes]) -> Damage:
    """A damage of a zip archive; ``change`` gives the new archive from its members."""

    def damage(rng: Random, files: dict[str, Entry], main: str) -> dict[str, Entry]:
        try:
            with zipfile.ZipFile(io.BytesIO(weights_of(files, main))) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, ValueError, OverflowError):
            return flip(rng, files, main)
        return files | {main: change(rng, members)}

    return damage


def _zip_bomb(rng: Random, members: dict[str, bytes]) -> bytes:
    name = rng.choice(list(members) or ["x.npy"])
    size = rng.choice((1 << 20,) * 8 + (8 << 20,) * 3 + (96 << 20,))
    is_npy = name.endswith(".npy")
    bomb = npy_bytes(np.zeros(size // 4, np.float32)) if is_npy else bytes(size)
    more = {f"{index}{name}": bomb for index in range(rng.choice((0, 0, 1, 3)))}
    return zip_bytes(members | {name: bomb} | more, zipfile.ZIP_DEFLATED)


def _zip_sizes(rng: Random, members: dict[str, bytes]) -> bytes:
    """Sizes, offsets, flags and methods of the central directory and of the local headers, overwritten."""
    data = bytearray(zip_bytes(members))
    signature, fields = rng.choice(
        ((b"PK\x01\x02", ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4))),
         (b"PK\x03\x04", ((6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))),
         (b"PK\x05\x06", ((8, 2), (10, 2), (12, 4), (16, 4), (20, 2))))
    )  # fmt: skip
    places = [place for place in range(len(data) - 4) if data[place : place + 4] == signature]
    for _ in range(rng.choice((1, 1, 3))):
        place = rng.choice(places or [0])
        offset, width = rng.choice(fields)
        value = cast("int", rng.choice(ABSURD[:16])) % (1 << 8 * width)
        data[place + offset : place + offset + width] = value.to_bytes(width, "little")
    return bytes(data)


def _zip_members(rng: Random, members: dict[str, bytes]) -> bytes:
    names = list(members)
    kind = rng.randrange(5)
    if kind == 0:
        return zip_bytes(members | {f"{index}.npy": b"" for index in range(2000)})
    if kind == 1:
        up = rng.choice(("../../up/", "/", "..\\", "\0", "a" * 5000))
        return zip_bytes({f"{up}{name}": data for name, data in members.items()})
    if kind == 2 and names:
        members.pop(rng.choice(names))
        return zip_bytes(members)
    if kind == 3 and len(names) > 1:
        one, two = rng.sample(names, 2)
        members[one], members[two] = members[two], members[one]
        return zip_bytes(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    name = rng.choice(names or ["x.npy"])
    return zip_bytes(members | {name: members.get(name, b"")[: rng.randrange(200)]})


def _zip_array(rng: Random, members: dict[str, bytes]) -> bytes:
    """The text header of one array of an archive, changed; its length is kept right."""
    name = rng.choice(list(members) or ["x.npy"])
    text = rng.choice(
        (
            "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 40,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1099511627776), }",
            "{'descr': '<f4', 'fortran_order': True, 'shape': (0, 9223372036854775807), }",
            "{'descr': [('a', '<f4', (1000000, 1000000))], 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '<f4', 'fortran_order': 3, 'shape': 'x'}",
            "__import__('os').system('touch " + MARKER + "')",
            "(" * 3000,
            "-" * 9000 + "1",
            "{'descr': '<f4', 'shape': " + "(" * 90 + ")" * 90 + "}",
        )
    ).encode()  # fmt: skip
    version = rng.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"))
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text) + 1)
    return zip_bytes(members | {name: b"\x93NUMPY" + version + length + text + b"\n" + bytes(64)})


class _Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


_TOUCH = f"touch {MARKER}".encode()
_OPEN = f"open('{MARKER}','w').close()".encode()
_CODES = (
    b"cos\nsystem\n(S'" + _TOUCH + b"'\ntR.",
    b"cposix\nsystem\n(S'" + _TOUCH + b"'\ntR.",
    b"c__builtin__\neval\n(V" + _OPEN + b"\ntR.",
    b"c__builtin__\nexec\n(V" + _OPEN + b"\ntR.",
    b"(S'" + _TOUCH + b"'\nios\nsystem\n.",
    b"(cos\nsystem\nS'" + _TOUCH + b"'\no.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(_TOUCH)]) + _TOUCH + b"\x85R.",
    b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93\x8c" + bytes([len(_TOUCH)]) + _TOUCH + b"\x85R.",
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(tR.",
    b"\x80\x02ctorch\nload\n(X\x0b\x00\x00\x00/etc/passwd\x85R.",
    b"\x80\x02ctorch.serialization\nos.system\nX" + struct.pack("<I", len(_TOUCH)) + _TOUCH + b"\x85R.",
    b"\x80\x02ccollections\nOrderedDict\n)R}(X\x01\x00\x00\x00ac__builtin__\neval\nub.",
    b"\x80\x02]" + b"]a" * 20_000 + b".",
    b"\x80\x02" + b"]" * 100_000 + b".",
    b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.",
    b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    b"\x80\x02\x8b" + struct.pack("<i", -5) + b"x.",
    b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x.",
    b"\x80\x02\x82\x01.",
    b"\x80\x02r\xff\xff\xff\x7f.",
    b"\x80\x02K\x01r\xff\xff\xff\x0f.",
    b"\x80\x02" + b"2" * 1000 + b".",
    b"\x80\x02}(K\x01K\x02u.",
    b"\x80\x02K\x01.",
    b"\x80\x63.",
)


def pickle_code(rng: Random, files: dict[str, Entry], main: str) -> dict[str, Entry]:
    if rng.random() < 0.3:
        call = _Call(*rng.choice(((os.system, f"touch {MARKER}"), (eval, _OPEN.decode()), (exec, _OPEN.decode()))))
        code = pickle.dumps(rng.choice((call, {"w": call}, [call])), rng.randrange(6))
    else:
        code = rng.choice(_CODES)
    shape = rng.randrange(4)
    if shape == 0:
        data = code
    elif shape == 1:
        data = zip_bytes({"archive/data.pkl": code, "archive/version": b"3\n", "archive/byteorder": b"little"})
    elif shape == 2:  # the five pickles of the old format, the third of which holds the objects
        magic = (
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
        )
        data = magic + code + pickle.dumps([], 2)
    else:
        whole = weights_of(files, main)
        place = whole.find(b"\x80\x02")
        data = whole[: place + 2] + code[2:] if place >= 0 else code
    name = main if main.endswith((".bin", ".pt", ".pth", ".ckpt")) or rng.random() < 0.3 else "adapter_model.bin"
    return {key: entry for key, entry in files.items() if key != main} | {name: data}


NPZ: Mapping[str, Damage] = {
    "zip-bomb": _archive(_zip_bomb),
    "zip-sizes": _archive(_zip_sizes),
    "zip-members": _archive(_zip_members),
    "zip-array": _archive(_zip_array),
}
"""Damage to archives of arrays."""

TORCH: Mapping[str, Damage] = {name: NPZ[name] for name in ("zip-bomb", "zip-sizes", "zip-members")}
"""Damage to PyTorch's archives."""
