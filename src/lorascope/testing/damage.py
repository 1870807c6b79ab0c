"""Damage to files: seeded pure functions (random source, files, name of the weights file) → files.

Bytes that are flipped, cut or moved; headers of safetensors files that lie; links and pipes in place of files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, cast

from lorascope.testing.samples import (
    CONFIG,
    DTYPES,
    Entry,
    Link,
    Pipe,
    safetensors_bytes,
)

Damage = Callable[[Random, dict[str, Entry], str], dict[str, Entry]]

ABSURD: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 255, 256, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 1, 10**40, -(1 << 63), 0.5, 1e308, 1e-320, True, False, None, "", "8", [], {}, [[]],
)  # fmt: skip
"""Values that a header or a configuration should not hold, or just may."""


def weights_of(files: Mapping[str, Entry], main: str) -> bytes:
    """The bytes of the weights file, none where it is a link or a pipe."""
    entry = files.get(main, b"")
    return entry if isinstance(entry, bytes) else b""


def flip(rng: Random, files: dict[str, Entry], main: str) -> dict[str, Entry]:
    """A few bytes changed, most of them near the start."""
    data = bytearray(weights_of(files, main))
    # headers are where lies are told, so half of the places are near the start
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if data:
            data[rng.randrange(min(len(data), rng.choice((16, 256, 1 << 30))))] = rng.randrange(256)
    return files | {main: bytes(data)}


def _truncate(rng: Random, files: dict[str, Entry], main: str) -> dict[str, Entry]:
    data = weights_of(files, main)
    return files | {main: data[: rng.randrange(len(data) + 1)]}


def _splice(rng: Random, files: dict[str, Entry], main: str) -> dict[str, Entry]:
    data = weights_of(files, main)
    begin, place = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    piece = data[begin : begin + rng.choice((1, 4, 8, 64, 1024))]
    removed = rng.choice((0, 0, len(piece), rng.randrange(64)))
    return files | {main: data[:place] + piece + data[place + removed :]}


def _append(rng: Random, files: dict[str, Entry], main: str) -> dict[str, Entry]:
    tail = rng.choice((b"\0", b" ", b"{}", b"\0" * 4096, rng.randbytes(rng.randrange(1, 512))))
    data = weights_of(files, main)
    return files | {main: rng.choice((data + tail, tail + data))}


def _integer(rng: Random, files: dict[str, Entry], main: str) -> dict[str, Entry]:
    data = bytearray(weights_of(files, main))
    if len(data) >= 8:
        place = rng.randrange(min(len(data) - 7, rng.choice((16, 512, 1 << 30))))
        width = rng.choice((4, 8))
        value = cast("int", rng.choice(ABSURD[:16])) % (1 << 8 * width)
        data[place : place + width] = value.to_bytes(width, "little")
    return files | {main: bytes(data)}


def _zeros(rng: Random, files: dict[str, Entry], main: str) -> dict[str, Entry]:
    data = bytearray(weights_of(files, main))
    begin = rng.randrange(len(data) + 1)
    end = min(begin + rng.choice((8, 64, 1 << 20)), len(data))
    data[begin:end] = bytes(end - begin)
    return files | {main: bytes(data)}


def _other_name(rng: Random, files: dict[str, Entry], main: str) -> dict[str, Entry]:
    name = rng.choice(
        ("adapter_model.bin", "adapter_model.safetensors", "x.pt", "x.npz", "x.gguf", "x.ckpt", "adapters.npz", "x.txt")
    )
    return {(name if key == main else key): entry for key, entry in files.items()}


def _config_bytes(rng: Random, files: dict[str, Entry], main: str) -> dict[str, Entry]:
    config = files.get(CONFIG)
    text = config if isinstance(config, bytes) else b"{}"
    kind = rng.randrange(6)
    if kind == 0:
        text = text[: rng.randrange(len(text) + 1)]
    elif kind == 1:
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.randbytes(rng.randrange(1, 9)) + text[place + rng.randrange(3) :]
    elif kind == 2:
        text = rng.choice((b"[" * 100_000, b'{"a":' * 50_000, b"[" * 500 + b"]" * 500, b'{"r":' + b"9" * 5000 + b"}"))
    elif kind == 3:
        text = rng.choice((b"", b"null", b"[]", b"1", b'"x"', b"NaN", b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"\0" * 64))
    elif kind == 4:
        text = b'{"x": "' + b"y" * rng.choice((1 << 10, 1 << 20, 3 << 20)) + b'",' + text[1:]
    else:
        text = (
            text[:1] + rng.choice((b'"r": NaN,', b'"r": Infinity,', b'"r": 2, "r": 3,', b'"a": "\\ud800",')) + text[1:]
        )
    return files | {CONFIG: text}


_TARGETS = (
    "/dev/zero",
    "/dev/random",
    "/etc/passwd",
    "/proc/self/mem",
    ".",
    "loop",
    "nowhere",
)


def _link(rng: Random, files: dict[str, Entry], main: str) -> dict[str, Entry]:
    name = rng.choice((main, CONFIG, "adapter_model.safetensors"))
    target = rng.choice(_TARGETS)
    return files | {name: Link(name if target == "loop" else target)}


def _pipe(rng: Random, files: dict[str, Entry], main: str) -> dict[str, Entry]:
    return files | {rng.choice((main, CONFIG)): Pipe()}


def header_of(data: bytes) -> tuple[dict[str, Any], bytes] | None:
    """The header of a safetensors file and its data; None where it has none."""
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= len(data) - 8:
        return None
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError:
        return None
    return (header, data[8 + length :]) if isinstance(header, dict) else None


def _header(change: Callable[[Random, dict[str, Any], bytes], Any]) -> Damage:
    """A damage of the header alone; ``change`` gives the new header, its text, or the whole file's bytes."""

    def damage(rng: Random, files: dict[str, Entry], main: str) -> dict[str, Entry]:
        parts = header_of(weights_of(files, main))
        if parts is None:
            return flip(rng, files, main)
        changed = change(rng, *parts)
        return files | {main: changed if isinstance(changed, bytes) else safetensors_bytes(changed, parts[1])}

    return damage


def _one(rng: Random, header: dict[str, Any]) -> dict[str, Any]:
    """The entry of one tensor, which is then changed in place."""
    entries = [entry for name, entry in header.items() if name != "__metadata__" and isinstance(entry, dict)]
    return rng.choice(entries) if entries else {}


def _header_dtype(rng: Random, header: dict[str, Any], data: bytes) -> Any:
    _one(rng, header)["dtype"] = rng.choice((*DTYPES.values(), "F4", "Q8", "f32", "", *ABSURD[:8], [], {"a": 1}))
    return header


def _header_shape(rng: Random, header: dict[str, Any], data: bytes) -> Any:
    entry = _one(rng, header)
    shape = list(entry.get("shape") or [])
    kind = rng.randrange(5)
    if kind == 0:
        shape = rng.choice(ABSURD)
    elif kind == 1 and shape:
        shape[rng.randrange(len(shape))] = rng.choice(ABSURD)
    elif kind == 2:
        shape = [1] * rng.choice((5, 32, 33, 64, 1000)) + shape
    elif kind == 3:
        shape = [0, *[(1 << 63) - 1] * rng.randrange(4)]
        entry["data_offsets"] = [0, 0]
    else:
        rng.shuffle(shape)
        shape += [1] * rng.randrange(3)
    entry["shape"] = shape
    return header


def _header_offsets(rng: Random, header: dict[str, Any], data: bytes) -> Any:
    entry, other = _one(rng, header), _one(rng, header)
    kind = rng.randrange(5)
    if kind == 0:
        entry["data_offsets"] = rng.choice((*ABSURD, [0], [0, 1, 2], [5, 1], [-1, 3], [0.0, 8.0]))
    elif kind == 1:
        entry["data_offsets"] = [rng.choice(ABSURD), rng.choice(ABSURD)]
    elif kind == 2:
        entry["data_offsets"] = other.get("data_offsets")
    elif kind == 3:
        entry["data_offsets"], other["data_offsets"] = other.get("data_offsets"), entry.get("data_offsets")
    else:
        for one in header.values():
            if isinstance(one, dict) and "data_offsets" in one:
                one["data_offsets"] = [int(n) + rng.choice((0, 1, 4)) for n in one["data_offsets"]]
    return header


def _header_huge(rng: Random, header: dict[str, Any], data: bytes) -> Any:
    entry = _one(rng, header)
    side = rng.choice((1 << 16, 1 << 20, 1 << 31, 1 << 32))
    entry["shape"], entry["dtype"] = [side, side], "F32"
    begin = rng.choice((0, len(data)))
    entry["data_offsets"] = [begin, begin + side * side * 4]
    return header


def _header_duplicate(rng: Random, header: dict[str, Any], data: bytes) -> Any:
    text = json.dumps(header)
    name = rng.choice(list(header) or ["x"])
    again = json.dumps(name) + ":" + json.dumps(header.get(name))
    return safetensors_bytes(f"{{{again},{text[1:]}".encode(), data)


def _header_deep(rng: Random, header: dict[str, Any], data: bytes) -> Any:
    depth = rng.choice((100, 900, 5_000, 200_000))
    inside = rng.choice((b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth))
    return safetensors_bytes(b'{"__metadata__":' + inside + b"," + json.dumps(header).encode()[1:], data)


def _header_text(rng: Random, header: dict[str, Any], data: bytes) -> Any:
    text = json.dumps(header)
    for number in ("NaN", "Infinity", "-Infinity", "1e400", "9" * 5000, "-0", "1E3"):
        if rng.random() < 0.3:
            place = text.find('"shape": [')
            text = text[: place + 10] + number + "," + text[place + 10 :] if place >= 0 else text
    padding = rng.choice(("", " " * 7, "\n", "\0", "x", "﻿"))
    return safetensors_bytes(rng.choice((padding + text, text + padding)).encode(), data)


def _header_length(rng: Random, header: dict[str, Any], data: bytes) -> Any:
    whole = safetensors_bytes(header, data)
    length = int.from_bytes(whole[:8], "little")
    wrong = rng.choice((0, 1, length - 1, length + 1, length + len(data), 100_000_001, 1 << 63, (1 << 64) - 1))
    return struct.pack("<Q", wrong) + whole[8:]


def _header_metadata(rng: Random, header: dict[str, Any], data: bytes) -> Any:
    strange = {
        "format": "pt",
        rng.choice(("a", "\ud800", "", "__proto__")): rng.choice((*ABSURD, "\udfff", "x" * 9999)),
    }
    header["__metadata__"] = rng.choice((*ABSURD, strange, strange))
    return header


ANY: Mapping[str, Damage] = {
    "flip": flip,
    "truncate": _truncate,
    "splice": _splice,
    "append": _append,
    "integer": _integer,
    "zeros": _zeros,
    "other-name": _other_name,
    "config-bytes": _config_bytes,
    "link": _link,
    "pipe": _pipe,
}
"""Damage that any file can suffer."""

HEADERS: Mapping[str, Damage] = {
    "header-dtype": _header(_header_dtype),
    "header-shape": _header(_header_shape),
    "header-offsets": _header(_header_offsets),
    "header-huge": _header(_header_huge),
    "header-duplicate": _header(_header_duplicate),
    "header-deep": _header(_header_deep),
    "header-text": _header(_header_text),
    "header-length": _header(_header_length),
    "header-metadata": _header(_header_metadata),
}
"""Damage to the headers of safetensors files."""
