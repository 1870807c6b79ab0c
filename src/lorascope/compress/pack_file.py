"""Pack files: one safetensors file, what its tensors mean as JSON under ``lorascope.pack`` in its metadata.

    basis.<cluster>.<site>.U, .V     [out · ku], [in · kv]
    adapter.<number>                 the matrices of that adapter one after another
    ….steps                          beside each of them, where they are codes of 8 or 4 bits

Nothing in a file is trusted: every number in the header is checked against the tensors that are there, so that what is
allocated is bounded by what the file holds; names of adapters are names of files and nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from lorascope.adapter.update import Layer
from lorascope.compress.names import is_safe
from lorascope.compress.pack import Layout, Method, Pack, PackMember, PackSite
from lorascope.compress.quantise import BITS, sizes
from lorascope.errors import AdapterError
from lorascope.formats.dtypes import STORED
from lorascope.formats.safetensors_file import read_safetensors, write_safetensors

KEY = "lorascope.pack"
VERSION = 1
_FLOATING = {np.dtype(kind) for name, kind in STORED.items() if name in ("F64", "F32", "F16", "BF16")}
_LARGEST = 1 << 31


def write_pack(pack: Pack, path: Path) -> None:
    """Write a pack, whole or not at all.

    Raises:
        OutputError: where the file cannot be written.
    """
    header = {
        "version": VERSION,
        "method": pack.method,
        "bits": pack.bits,
        "base_model": pack.base_model,
        "sites": [
            {
                "name": site.name,
                "shape": site.shape,
                "layer": site.layer,
                "kernel": site.kernel,
                "is_transposed": site.is_transposed,
                "layout": site.layout,
            }
            for site in pack.sites
        ],
        "adapters": [{"name": one.name, "cluster": one.cluster, "ranks": one.ranks} for one in pack.members],
        "widths": pack.widths,
    }
    write_safetensors(path, pack.tensors, {KEY: json.dumps(header, separators=(",", ":"))})


def read_pack(path: Path) -> Pack:
    """The pack at ``path``; its tensors are views of the mapped file.

    Raises:
        AdapterError: where the file is no pack, or not exactly what its header says.
    """
    if not path.is_file():
        raise AdapterError("no pack here", file=path, expected="a file that `lorascope compress` wrote")
    try:
        file = read_safetensors(path)
        if KEY not in file.metadata:
            raise AdapterError("not a pack", expected=f"a safetensors file with {KEY} in its metadata")
        try:
            header = json.loads(file.metadata[KEY])
        except (ValueError, RecursionError):
            raise AdapterError("the header of the pack is not JSON", key=KEY) from None
        pack = _checked(_mapping(header, KEY), file.tensors)
        _check_tensors(pack)
    except AdapterError as error:
        error.file = error.file or str(path)
        raise
    return pack


def _checked(header: Mapping[str, Any], tensors: Mapping[str, Any]) -> Pack:
    version = _whole(header.get("version"), "version")
    if version != VERSION:
        raise AdapterError("another version of packs", key="version", expected=VERSION, found=version)
    bits = header.get("bits")
    method = _one_of(header.get("method"), get_args(Method), "method")
    base = header.get("base_model")
    if bits is not None and _whole(bits, "bits") not in BITS:
        raise AdapterError("no such number of bits", key="bits", expected="8, 4 or null", found=bits)
    if base is not None and not isinstance(base, str):
        raise AdapterError("not a name", key="base_model", found=type(base).__name__)
    sites = tuple(_site(one, f"sites[{at}]") for at, one in enumerate(_list(header.get("sites"), "sites")))
    if len({site.name for site in sites}) != len(sites):
        raise AdapterError("two sites have one name", key="sites")
    widths = tuple(
        tuple(_pair(one, f"widths[{number}][{place}]") for place, one in enumerate(_list(row, f"widths[{number}]")))
        for number, row in enumerate(_list(header.get("widths"), "widths"))
    )
    if (method == "alone") != (not widths):
        raise AdapterError("bases for adapters that share none, or none for those that do", key="widths", found=method)
    for number, row in enumerate(widths):
        for place, (site, width) in enumerate(zip(sites, row, strict=False)):
            if len(row) != len(sites) or not (1 <= width[0] <= site.shape[0] and 1 <= width[1] <= site.shape[1]):
                raise AdapterError("bases do not fit the sites", key=f"widths[{number}][{place}]", found=list(width))
        if len(row) != len(sites):
            raise AdapterError("not one width for each site", key=f"widths[{number}]", found=len(row))
    members = tuple(
        _member(one, sites, widths, f"adapters[{at}]")
        for at, one in enumerate(_list(header.get("adapters"), "adapters"))
    )
    if method == "diagonal":
        _check_diagonal(members, widths)
    if len({member.name.lower() for member in members}) != len(members):
        raise AdapterError("two adapters have one name", key="adapters")
    return Pack(cast("Method", method), bits, base, sites, members, widths, tensors)


def _check_diagonal(members: tuple[PackMember, ...], widths: tuple[tuple[tuple[int, int], ...], ...]) -> None:
    """Check that cores are diagonal: as wide as both bases, or not there."""
    for number, row in enumerate(widths):
        if any(one != other for one, other in row):
            raise AdapterError("two widths for diagonal cores", key=f"widths[{number}]")
    for at, member in enumerate(members):
        if any(rank not in (0, width[0]) for rank, width in zip(member.ranks, widths[member.cluster], strict=True)):
            raise AdapterError("a diagonal core is not as wide as its bases", key=f"adapters[{at}].ranks")


def _site(value: Any, key: str) -> PackSite:
    fields = _mapping(value, key)
    name, kernel = fields.get("name"), tuple(_whole(one, key) for one in _list(fields.get("kernel"), key))
    shape = _pair(fields.get("shape"), f"{key}.shape")
    if not isinstance(name, str) or not name or not isinstance(fields.get("is_transposed"), bool):
        raise AdapterError("a site without its name or layout", key=key, found=ascii(name)[:80])
    if min(shape) < 1 or (kernel and math.prod(kernel) != shape[1]):
        raise AdapterError("the shape of a site is impossible", key=key, found=f"{list(shape)}, {list(kernel)}")
    return PackSite(
        name,
        shape,
        cast("Layer", _one_of(fields.get("layer"), get_args(Layer), f"{key}.layer")),
        kernel,
        fields["is_transposed"],
        cast("Layout", _one_of(fields.get("layout"), get_args(Layout), f"{key}.layout")),
    )


def _member(value: Any, sites: tuple[PackSite, ...], widths: Any, key: str) -> PackMember:
    fields = _mapping(value, key)
    name, cluster = fields.get("name"), _whole(fields.get("cluster"), f"{key}.cluster")
    ranks = tuple(_whole(one, f"{key}.ranks") for one in _list(fields.get("ranks"), f"{key}.ranks"))
    if not isinstance(name, str) or not is_safe(name):
        raise AdapterError(
            "the name of an adapter is not that of a file",
            key=key,
            expected="letters, digits, dots and dashes",
            found=ascii(name)[:80],
        )
    if cluster >= max(len(widths), 1) or len(ranks) != len(sites):
        raise AdapterError("an adapter does not fit the sites or clusters", key=key, found=f"cluster {cluster}")
    for place, (rank, site) in enumerate(zip(ranks, sites, strict=True)):
        limit = min(widths[cluster][place] if widths else site.shape)
        if rank > limit:
            raise AdapterError("a rank is impossible", key=f"{key}.ranks", expected=f"at most {limit}", found=rank)
    return PackMember(name, cluster, ranks)


def _check_tensors(pack: Pack) -> None:
    """Check that every tensor is there with the size that the header gives it, and no other."""
    counts: dict[str, list[int]] = {}
    for number, row in enumerate(pack.widths):
        for place, (site, width) in enumerate(zip(pack.sites, row, strict=True)):
            counts[f"basis.{number}.{place}.U"] = [site.shape[0] * width[0]]
            counts[f"basis.{number}.{place}.V"] = [site.shape[1] * width[1]]
    for number, member in enumerate(pack.members):
        counts[f"adapter.{number}"] = pack.count(member)
    names = set(counts) | ({f"{name}.steps" for name in counts} if pack.bits else set())
    if names != set(pack.tensors):
        odd = sorted(names ^ set(pack.tensors))
        raise AdapterError("the tensors are not those of the header", key=odd[0][:80], found=f"{len(odd)} that differ")
    for name, own in counts.items():
        tensor = pack.tensors[name]
        if pack.bits is None:
            _check(name, tensor, sum(own), _FLOATING)
            continue
        each = [sizes(count, pack.bits) for count in own]
        _check(name, tensor, sum(one for one, _ in each), {np.dtype(np.int8 if pack.bits == 8 else np.uint8)})
        _check(f"{name}.steps", pack.tensors[f"{name}.steps"], sum(one for _, one in each), {np.dtype(np.float32)})


def _check(name: str, tensor: Any, count: int, kinds: set[np.dtype[Any]]) -> None:
    if tensor.shape != (count,) or tensor.dtype not in kinds:
        raise AdapterError(
            "a tensor is not what the header says",
            key=name,
            expected=f"{count} numbers of {' or '.join(sorted(kind.name for kind in kinds))}",
            found=f"{tensor.dtype.name} {list(tensor.shape)}",
        )


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise AdapterError("not an object", key=key, found=type(value).__name__)
    return cast("Mapping[str, Any]", value)


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise AdapterError("not a list", key=key, found=type(value).__name__)
    return cast("list[Any]", value)


def _whole(value: Any, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LARGEST:
        raise AdapterError("not a whole number in its range", key=key, found=ascii(value)[:40])
    return value


def _pair(value: Any, key: str) -> tuple[int, int]:
    numbers = [_whole(one, key) for one in _list(value, key)]
    if len(numbers) != 2:
        raise AdapterError("not two numbers", key=key, found=len(numbers))
    return numbers[0], numbers[1]


def _one_of(value: Any, known: tuple[str, ...], key: str) -> str:
    if value not in known:
        raise AdapterError("an unknown word", key=key, expected=", ".join(known), found=ascii(value)[:40])
    return cast("str", value)
