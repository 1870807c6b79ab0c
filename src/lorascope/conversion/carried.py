"""The files of a base that a baked one has too: everything but the weights that were baked, and other copies of them.

Copies of the same weights in other files (``pytorch_model.bin``, ``model.onnx``, ``model.fp16.safetensors``) would be
without the adapter, so that they are left out and said. Weights of other parts (a dense layer beside a text encoder)
are no copies, and come along. Links are followed within the base, and within the cache of the hub that it is a part of.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats.safetensors_file import read_safetensors

MAX_FILES = 1 << 16
"""Files and folders that a base may have."""

_EXPORTS = (".gguf", ".onnx", ".onnx_data", ".h5", ".msgpack", ".tflite", ".ot")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_WEIGHTS_NAMES = re.compile(r"(pytorch_model|diffusion_pytorch_model|model|consolidated)\b.*", re.DOTALL)


def carry_over(source: Path, target: Path, baked: Mapping[Path, Collection[str]], *, is_pipeline: bool) -> list[str]:
    """Copy the files of the base ``source`` to ``target`` that baking does not change, and say what was left out.

    Args:
        source: the folder of the base; its hidden files stay behind.
        target: a folder that is there.
        baked: the weights files that are written anew → the names of their tensors.
        is_pipeline: whether the weights of ``source`` lie in its folders, so that those beside them are copies.

    Raises:
        AdapterError: where the folder holds more than ``MAX_FILES``.
    """
    folders = {file.parent for file in baked} | ({source} if is_pipeline else set[Path]())
    names = {name for tensors in baked.values() for name in tensors}
    copies: list[str] = []
    links: list[str] = []
    for file in _files_in(source):
        relative = file.relative_to(source)
        if file in baked:
            continue
        if not _is_inside(file, source):
            links.append(relative.as_posix())
        elif _is_copy(file, names, is_among=file.parent in folders, is_aside=is_pipeline and file.parent == source):
            copies.append(relative.as_posix())
        else:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / relative)
    return [
        f"left out, {why}: {', '.join(found[:5])}{f' and {len(found) - 5} more' if len(found) > 5 else ''}"
        for found, why in (
            (copies, "being other copies of the weights, without the adapter"),
            (links, "being links that lead out of the base"),
        )
        if found
    ]


def _files_in(source: Path) -> Iterator[Path]:
    """The files of a folder that are not hidden, and the links to folders, which are not followed."""
    count = 0
    for folder, names, files in os.walk(source):
        names[:] = sorted(name for name in names if not name.startswith("."))
        here = Path(folder)
        found = [here / name for name in names if (here / name).is_symlink()]
        found += [here / name for name in sorted(files) if not name.startswith(".")]
        count += len(names) + len(found)
        if count > MAX_FILES:
            raise AdapterError("the base has too many files", file=source, expected=f"at most {MAX_FILES}")
        yield from (file for file in found if file.is_symlink() or stat.S_ISREG(file.lstat().st_mode))


def _is_inside(file: Path, source: Path) -> bool:
    """Whether what a file is lies in the base, or in the store of a hub's cache whose snapshot the base is."""
    if not file.is_symlink():
        return True
    base, place = source.resolve(), file.resolve()
    is_snapshot = base.parent.name == "snapshots" and place.parent == base.parent.parent / "blobs"
    return place.is_file() and (is_snapshot or place.is_relative_to(base))


def _is_copy(file: Path, names: AbstractSet[str], *, is_among: bool, is_aside: bool) -> bool:
    """Whether a file holds weights that were baked, as far as its name or its header tells."""
    if file.suffix in _EXPORTS or (file.suffix == ".bin" and file.name.startswith("openvino")):
        return True
    if not is_among or file.suffix not in (*_PICKLES, ".safetensors"):
        return False
    if is_aside and file.suffix in (".safetensors", ".ckpt"):
        return True
    if file.suffix != ".safetensors":
        return _WEIGHTS_NAMES.fullmatch(file.stem) is not None
    try:
        return not names.isdisjoint(read_safetensors(file).tensors)
    except LorascopeError:
        return False  # no weights that anyone could load
