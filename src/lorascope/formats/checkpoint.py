"""A base model on disk: the names, shapes and dtypes of its weights from headers alone, and its tensors one by one.

    <folder>/model.safetensors            or shards beside model.safetensors.index.json
    <folder>/{unet,transformer,text_encoder,…}/…        a diffusers pipeline: the folder is the component's prefix

A site names a module; its weight is looked for under ``<site>.weight``, under ``<site>`` itself (a fused parameter),
and under the one name that differs from these only by wrappers in front (``model.``, ``bert.``), which savers add and
drop, and by the folder of a pipeline's component.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lorascope.adapter.layout import CONV1D_LAYERS, Spot
from lorascope.adapter.paths import Paths, alike
from lorascope.adapter.site import Part, path_and_part
from lorascope.errors import AdapterError
from lorascope.formats.base_facts import (
    HEADS,
    BaseFacts,
    are_experts_flagged,
    are_experts_stored_in_out,
    base_facts,
    conv1d_by_biases,
    is_conv1d_stored_in_out,
)
from lorascope.formats.config_file import mapping, read_config
from lorascope.formats.contents import Tensors
from lorascope.formats.pairs import is_floating
from lorascope.formats.safetensors_file import read_safetensors

_MAX_INDEX = 64 << 20  # bytes: an index names every tensor of the base
_MAX_PARTS = 32  # of a tensor's name that are looked at as module names
_PACKED = ("qweight", "weight_packed")


@dataclass(frozen=True)
class Checkpoint:
    """A base model on disk.

    Args:
        path: the folder or file.
        files: the weights files, in order, with the prefix that their tensors' names get.
        tensors: name → tensor, a view of its mapped file.
        names: file → the names of its tensors as the file has them.
        metadata: file → the metadata in its header.
    """

    path: Path
    files: Mapping[Path, str]
    tensors: Tensors
    names: Mapping[Path, tuple[str, ...]]
    metadata: Mapping[Path, Mapping[str, str]]

    @classmethod
    def open(cls, location: str | os.PathLike[str]) -> Checkpoint:
        """The checkpoint in a folder or file; only headers are read, the data are mapped.

        Raises:
            AdapterError: where there are no safetensors weights, or two files hold one name.
        """
        path = Path(location)
        files = dict(_weights_files(path))
        if not files:
            raise AdapterError(
                "no base model here",
                file=path,
                expected="a folder with safetensors weights, or one such file",
                found="no safetensors files" if path.is_dir() else "no such folder",
                hint="pickled base models are not read: save them as safetensors",
            )
        tensors: dict[str, NDArray[Any]] = {}
        names: dict[Path, tuple[str, ...]] = {}
        metadata: dict[Path, Mapping[str, str]] = {}
        for file, prefix in files.items():
            content = read_safetensors(file)
            names[file], metadata[file] = tuple(content.tensors), content.metadata
            for name, tensor in content.tensors.items():
                if prefix + name in tensors:
                    raise AdapterError("two files of the base model hold one tensor", file=file, key=name)
                tensors[prefix + name] = tensor
        return cls(path, files, tensors, names, metadata)

    def name_of(self, site: str, ending: str = "weight") -> str | None:
        """The name of a site's tensor in this checkpoint, or None; the bracket of a part is left aside.

        Raises:
            AdapterError: where several names fit equally well.
        """
        path, _ = path_and_part(site)
        for name in (f"{path}.{ending}", *([path] if ending == "weight" else [])):
            found = self._paths.find(name)
            if len(found) > 1:
                raise AdapterError("several weights of the base fit this site", key=site, found=", ".join(found[:3]))
            if found:
                return found[0]
        return None

    @cached_property
    def _paths(self) -> Paths:
        folder = self.path if self.path.is_dir() else self.path.parent
        return Paths(self.tensors, {*(prefix.removesuffix(".") for prefix in self.files.values()), folder.name} - {""})

    def has(self, site: str) -> bool:
        """Whether exactly one weight of the base fits the site's name."""
        try:
            return self.name_of(site) is not None
        except AdapterError:
            return False

    def has_module(self, name: str) -> bool:
        """Whether a module of the base has this name, or one that ends in it after a dot.

        >>> import numpy as np
        >>> base = Checkpoint(Path("base"), {}, {"model.layers.0.q_proj.weight": np.ones((2, 2))}, {}, {})
        >>> base.has_module("q_proj"), base.has_module("layers.0"), base.has_module("proj")
        (True, True, False)
        """
        return name in self._modules

    @cached_property
    def _modules(self) -> set[str]:
        """Every run of parts of a tensor's name that ends before its last part."""
        found: set[str] = set()
        for name in self.tensors:
            parts = name.split(".", _MAX_PARTS)
            for end in range(1, len(parts)):
                found.update(".".join(parts[start:end]) for start in range(end))
        return found

    def check_places(self, adapter: Mapping[str, Any]) -> None:
        """Check that no two sites of an adapter are one weight, or overlapping parts of one.

        Raises:
            AdapterError: naming the two sites.
        """
        taken: dict[str, list[tuple[str, Part | None]]] = {}
        for site in adapter:
            name = self.name_of(site)
            if name is None:
                raise self._missing(site)
            _, part = path_and_part(site)
            for other, there in taken.get(name, []):
                if part is None or there is None or part.overlaps(there):
                    raise AdapterError(
                        "two sites of the adapter are one weight of the base",
                        file=self.path,
                        key=site,
                        found=f"{other} and {site} are both {name}",
                        hint="is this the base that the adapter was made for?",
                    )
            taken.setdefault(name, []).append((site, part))

    def is_quantised(self, site: str) -> bool:
        """Whether the numbers of this weight are not the weight, so that nothing can be added to them.

        They are integers or of 8 bits, or a scale lies beside them.
        """
        name = self.name_of(site)
        if name is None:
            return self.packed_name_of(site) is not None
        weight = self.tensors[name]
        beside = (name + "_scale", name + "_scale_inv", name + ".absmax", name.removesuffix("weight") + "scales")
        return not is_addable(weight) or any(one in self.tensors for one in beside)

    def packed_name_of(self, site: str) -> str | None:
        """The name under which a quantiser keeps the weight of a site packed (GPTQ, AWQ, compressed-tensors), or None.

        Raises:
            AdapterError: where several names fit equally well.
        """
        return next((name for ending in _PACKED if (name := self.name_of(site, ending)) is not None), None)

    def weight(self, site: str) -> NDArray[Any]:
        """The base weight of a site, the part of it where the site names a part, as a view.

        Raises:
            AdapterError: where the base has none, or no such part.
        """
        name = self.name_of(site)
        if name is None:
            raise self._missing(site)
        _, part = path_and_part(site)
        weight = self.tensors[name]
        return weight if part is None else part.of(weight, site)

    def bias_of(self, site: str) -> str | None:
        """The name of the bias beside a site's weight, or None; never one of another module."""
        name = self.name_of(site)
        if name is None or not name.endswith(".weight"):
            return None
        bias = name.removesuffix("weight") + "bias"
        return bias if bias in self.tensors else None

    def spot(self, site: str) -> Spot:
        """What is known of the base at a site: the shape, and which way round the weight is stored.

        Raises:
            AdapterError: where the base has no such weight.
        """
        shape = tuple(self.weight(site).shape)
        path, part = path_and_part(site)
        types = self._types_at(site)
        if part is not None and part.end is None:
            return Spot(shape, "expert", are_experts_stored_in_out(types), are_experts_flagged(types))
        conv1d = is_conv1d_stored_in_out(types, self._conv1d_by_biases)
        if path.rpartition(".")[2] in CONV1D_LAYERS:
            return Spot(shape, "conv1d", conv1d)
        return Spot(shape, is_in_out=False if types or conv1d else None)

    @cached_property
    def _conv1d_by_biases(self) -> bool | None:
        return conv1d_by_biases(self.tensors)

    def _types_at(self, site: str) -> frozenset[str]:
        """The model types of the component that a site is in, as config.json beside its weights tells."""
        name = self.name_of(site) or ""
        facts = [one for prefix, one in self._facts.items() if name.startswith(prefix)]
        return frozenset[str]().union(*(one.types for one in facts))

    @property
    def is_head_tied(self) -> bool | None:
        """Whether config.json says that the head is the embedding, None where it says nothing of it."""
        ties = [one.is_head_tied for one in self._facts.values() if one.is_head_tied is not None]
        return any(ties) if ties else None

    @cached_property
    def _facts(self) -> dict[str, BaseFacts]:
        folders = {prefix: file.parent for file, prefix in self.files.items()}
        return {prefix: base_facts(folder / "config.json") for prefix, folder in folders.items()}

    def _missing(self, site: str) -> AdapterError:
        path, _ = path_and_part(site)
        names = {name.removesuffix(".weight"): name for name in self.tensors}
        like = [names[one] for one in alike(path, names)]
        hint = "is this the base that the adapter was made for?"
        if like:
            hint = f"the base has {', '.join(like)}; only wrappers in front (model., module. …) may differ"
        elif path.rpartition(".")[2] in HEADS and self.is_head_tied is not False:
            hint = "its head may be tied to the embedding: untie the base first, and save it with a head of its own"
        return AdapterError(
            "the base model has no such layer",
            file=self.path,
            key=site,
            expected="a module path of the base",
            hint=hint,
        )


def is_addable(weight: NDArray[Any]) -> bool:
    """Whether the numbers of a tensor are what they stand for, so that others can be added to them."""
    return is_floating(weight) and weight.dtype.itemsize > 1


def _weights_files(path: Path) -> Iterator[tuple[Path, str]]:
    if path.is_file():
        yield path, ""
        return
    inside = [] if (path / "model_index.json").is_file() else _safetensors_in(path)
    if inside:
        yield from ((file, "") for file in inside)
        return
    if path.is_dir():
        for folder in sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith(".")):
            yield from ((file, f"{folder.name}.") for file in _safetensors_in(folder))


def _safetensors_in(folder: Path) -> list[Path]:
    """The weights of one folder: the shards that its index names, or the whole model, or all files there are."""
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.iterdir() if file.suffix == ".safetensors" and file.is_file())
    for stem in ("model", "diffusion_pytorch_model", "pytorch_model"):
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return _shards_of(index, files)
        if whole := [file for file in files if file.name == f"{stem}.safetensors"]:
            return whole
        if shards := [file for file in files if re.fullmatch(rf"{stem}-\d+-of-\d+\.safetensors", file.name)]:
            return shards
    return [file for file in files if not file.name.startswith("adapter_model")]


def _shards_of(index: Path, files: list[Path]) -> list[Path]:
    """The files of the folder that an index names; names are compared, never opened as paths."""
    value, _ = read_config(index, limit=_MAX_INDEX)
    names = set(mapping(value, "weight_map").values())
    shards = [file for file in files if file.name in names]
    if missing := sorted(str(name)[:100] for name in names if name not in {file.name for file in files}):
        raise AdapterError("a shard of the base model is missing", file=index, expected=", ".join(missing[:3]))
    return shards
