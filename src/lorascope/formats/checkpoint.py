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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lorascope.adapter.layout import CONV1D_LAYERS, Spot
from lorascope.adapter.paths import Paths, alike
from lorascope.adapter.site import Part, path_and_part
from lorascope.adapter.widening import is_floating
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
from lorascope.formats.contents import TensorFile, Tensors
from lorascope.formats.interpretation import placed
from lorascope.formats.safetensors_file import read_safetensors

MAX_INDEX = 64 << 20
"""Bytes of an index, which names every tensor of the base."""

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
        configs: prefix → the config.json that is, or may be, beside the weights with that prefix.
        folder: the name of the folder of the weights, which savers may put before the names of sites.
    """

    path: Path
    files: Mapping[Path, str]
    tensors: Tensors
    names: Mapping[Path, tuple[str, ...]]
    metadata: Mapping[Path, Mapping[str, str]]
    configs: Mapping[str, Path] = field(default_factory=dict[str, Path])
    folder: str = ""

    @classmethod
    def open(cls, location: str | os.PathLike[str]) -> Checkpoint:
        """The checkpoint in a folder or file; only headers are read, the data are mapped.

        Raises:
            AdapterError: where there are no safetensors weights, or two files hold one name.
        """
        path = Path(location)
        with placed(path):
            files = dict(_weights_files(path))
        if not files:
            raise AdapterError(
                "no base model here",
                file=path,
                expected="a folder with safetensors weights, or one such file",
                found="no safetensors files" if path.is_dir() else "no such folder",
                hint="pickled base models are not read: save them as safetensors",
            )
        contents = {file: read_safetensors(file) for file in files}
        configs = {prefix: file.parent / "config.json" for file, prefix in files.items()}
        return cls.of(path, files, contents, configs, (path if path.is_dir() else path.parent).name)

    @classmethod
    def of(
        cls,
        path: Path,
        files: Mapping[Path, str],
        contents: Mapping[Path, TensorFile],
        configs: Mapping[str, Path],
        folder: str,
    ) -> Checkpoint:
        """The checkpoint that files make, whose prefixes are the values of ``files``.

        Raises:
            AdapterError: where two files hold one name.
        """
        tensors: dict[str, NDArray[Any]] = {}
        for file, prefix in files.items():
            for name, tensor in contents[file].tensors.items():
                if prefix + name in tensors:
                    raise AdapterError("two files of the base model hold one tensor", file=file, key=name)
                tensors[prefix + name] = tensor
        names = {file: tuple(content.tensors) for file, content in contents.items()}
        metadata = {file: content.metadata for file, content in contents.items()}
        return cls(path, files, tensors, names, metadata, configs, folder)

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
        return Paths(self.tensors, {*(prefix.removesuffix(".") for prefix in self.files.values()), self.folder} - {""})

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

    def hint_of_head(self, name: str) -> str | None:
        """What to do where a tensor of this name is missing, being of a head that may be tied; None for any other."""
        path = name.rpartition(".")[0]
        if path.rpartition(".")[2] not in HEADS or self.is_head_tied is False or name in self.tensors:
            return None
        return "its head may be tied to the embedding: untie the base first, and save it with a head of its own"

    @cached_property
    def _facts(self) -> dict[str, BaseFacts]:
        return {prefix: base_facts(config) for prefix, config in self.configs.items()}

    def _missing(self, site: str) -> AdapterError:
        path, _ = path_and_part(site)
        names = {name.removesuffix(".weight"): name for name in self.tensors}
        like = [names[one] for one in alike(path, names)]
        hint = "is this the base that the adapter was made for?"
        if like:
            hint = f"the base has {', '.join(like)}; only wrappers in front (model., module. …) may differ"
        elif (of_head := self.hint_of_head(f"{path}.weight")) is not None:
            hint = of_head
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
    if not path.is_dir():
        return
    names = [file.name for file in path.iterdir() if file.is_file()]
    names += [f"{file.parent.name}/{file.name}" for file in path.glob("*/*") if file.is_file()]
    found = weights_names(names, lambda name: _shards_of(path / name))
    yield from ((path / name, prefix) for name, prefix in found.items())


def weights_names(names: Iterable[str], shards_of: Callable[[str], set[str]]) -> dict[str, str]:
    """The weights among the files of a model and its subfolders, with the prefix that their tensors' names get.

    Those that an index names, or the whole model, or all files there are; of a pipeline, those of each component.

    Args:
        names: paths in the model's folder, such as ``unet/config.json``.
        shards_of: the path of an index → the file names that it lists.

    Raises:
        AdapterError: where a file that an index names is missing.

    >>> names = ["model.safetensors", "consolidated.safetensors", "onnx/model.safetensors"]
    >>> weights_names(names, lambda index: set())
    {'model.safetensors': ''}
    >>> weights_names(["model_index.json", "unet/x.safetensors", "vae/y.safetensors"], lambda index: set())
    {'unet/x.safetensors': 'unet.', 'vae/y.safetensors': 'vae.'}
    """
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if not folder.startswith(".") and "/" not in folder:
            folders.setdefault(folder, []).append(file)
    own = folders.pop("", [])
    inside = [] if "model_index.json" in own else _weights_in(own, shards_of)
    if inside:
        return dict.fromkeys(inside, "")
    return {
        f"{folder}/{file}": f"{folder}."
        for folder, files in sorted(folders.items())
        for file in _weights_in(files, lambda index, folder=folder: shards_of(f"{folder}/{index}"))
    }


def _weights_in(names: Sequence[str], shards_of: Callable[[str], set[str]]) -> list[str]:
    files = sorted(name for name in names if name.endswith(".safetensors"))
    for stem in ("model", "diffusion_pytorch_model", "pytorch_model"):
        index = f"{stem}.safetensors.index.json"
        if index in names:
            listed = shards_of(index)
            if missing := sorted(name[:100] for name in listed.difference(files)):
                raise AdapterError("a shard of the base model is missing", key=index, expected=", ".join(missing[:3]))
            return [file for file in files if file in listed]
        if f"{stem}.safetensors" in files:
            return [f"{stem}.safetensors"]
        if shards := [file for file in files if re.fullmatch(rf"{stem}-\d+-of-\d+\.safetensors", file)]:
            return shards
    return [file for file in files if not file.startswith("adapter_model")]


def _shards_of(index: Path) -> set[str]:
    """The files that an index names; names are compared, never opened as paths."""
    value, _ = read_config(index, limit=MAX_INDEX)
    return {str(name) for name in mapping(value, "weight_map").values()}
