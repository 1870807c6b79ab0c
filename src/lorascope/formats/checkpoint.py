"""A base model on disk: the names, shapes and dtypes of its weights from headers alone, and its tensors one by one.

    <folder>/model.safetensors            or shards beside model.safetensors.index.json
    <folder>/{unet,transformer,text_encoder,…}/…        a diffusers pipeline: the folder is the component's prefix

A site names a module; its weight is looked for under ``<site>.weight``, under ``<site>`` itself (a fused parameter),
and under the one name that differs from these only by leading parts (``model.``, ``bert.``), which savers add and drop.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lorascope.adapter.site import Part, path_and_part
from lorascope.errors import AdapterError
from lorascope.formats.config_file import mapping, read_config, text_or_none
from lorascope.formats.contents import Tensors
from lorascope.formats.safetensors_file import read_safetensors

_MAX_INDEX = 64 << 20  # bytes: an index names every tensor of the base
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_LAYERS = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})


@dataclass(frozen=True)
class Checkpoint:
    """A base model on disk.

    Args:
        path: the folder or file.
        files: the weights files, in order, with the prefix that their tensors' names get.
        tensors: name → tensor, a view of its mapped file.
        names: file → the names of its tensors as the file has them.
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
        exact = [f"{path}.{ending}", *([path] if ending == "weight" else [])]
        for name in exact:
            if name in self.tensors:
                return name
        for name in exact:
            found = self._by_tail(name)
            if len(found) > 1:
                raise AdapterError(
                    "several weights of the base fit this site", key=site, found=", ".join(sorted(found)[:3])
                )
            if found:
                return found[0]
        return None

    def _by_tail(self, name: str) -> list[str]:
        """Names that equal this one up to leading parts on either side."""
        longer = [one for one in self._tails.get(name, ()) if one != name]
        if longer:
            return longer
        parts = name.split(".")
        for start in range(1, len(parts) - 1):
            tail = ".".join(parts[start:])
            if tail in self.tensors:
                return [tail]
        return []

    @cached_property
    def _tails(self) -> dict[str, list[str]]:
        """Names without their first parts → the whole names."""
        found: dict[str, list[str]] = {}
        for name in self.tensors:
            parts = name.split(".")
            for start in range(1, min(len(parts) - 1, 4)):
                found.setdefault(".".join(parts[start:]), []).append(name)
        return found

    def has(self, site: str) -> bool:
        """Whether exactly one weight of the base fits the site's name."""
        try:
            return self.name_of(site) is not None
        except AdapterError:
            return False

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
        """Whether the base says that the numbers of this weight are not the weight: a scale lies beside them."""
        name = self.name_of(site) or ""
        beside = (name + "_scale", name + "_scale_inv", name + ".absmax", name.removesuffix("weight") + "scales")
        return any(one in self.tensors for one in beside)

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

    def is_stored_transposed(self, site: str) -> bool:
        """Whether the base keeps this layer as [in, out]: the Conv1D of GPT-2 and its kin."""
        return self.model_type in _CONV1D_MODELS and site.rpartition(".")[2] in _CONV1D_LAYERS

    @property
    def has_conv1d(self) -> bool:
        """Whether the model is one whose layers are partly Conv1D, as far as config.json tells."""
        return self.model_type in _CONV1D_MODELS

    @cached_property
    def model_type(self) -> str | None:
        """What config.json beside the weights calls the model, or None."""
        folder = self.path if self.path.is_dir() else self.path.parent
        config = folder / "config.json"
        if not config.is_file():
            return None
        value, _ = read_config(config)
        return text_or_none(value, "model_type")

    def is_fitting(self, site: str, base_shape: tuple[int, ...], *, is_transposed: bool = False) -> bool:
        """Whether an update for a weight of ``base_shape`` (−1: any) fits the weight of the site.

        A convolution's weight may be given as a matrix, and a Conv1D's as [out, in], as PEFT takes them, unless the
        update ``is_transposed`` already.
        """
        found: tuple[int, ...] = self.weight(site).shape
        candidates = [found]
        if len(found) > 2:
            candidates.append((found[0], math.prod(found[1:])))
        if self.is_stored_transposed(site) and not is_transposed:
            candidates.append(found[::-1])
        return any(
            len(base_shape) == len(shape) and all(e in (-1, f) for e, f in zip(base_shape, shape, strict=True))
            for shape in candidates
        )

    def _missing(self, site: str) -> AdapterError:
        path, _ = path_and_part(site)
        tail = "." + ".".join(path.split(".")[-2:]) + ".weight"
        like = [name for name in self.tensors if name.endswith(tail)][:2]
        return AdapterError(
            "the base model has no such layer",
            file=self.path,
            key=site,
            expected="a module path of the base",
            hint=f"the base has {', '.join(like)}" if like else "is this the base that the adapter was made for?",
        )


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
