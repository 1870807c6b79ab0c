"""Plain dictionaries of tensors whose names no format knows, read by a mapping that a person gives.

    {"{site}": {"B": "{site}.up", "A": "{site}.down", "alpha": 16}}       a site for each name that fits
    {"{site}.up": "B", "{site}.down": "A", "{site}.alpha": "alpha"}       the same in short: name → role
    {"layers.0.q": {"B": "w_b_0", "A": "w_a_0", "scale": 2.0}}            one site, spelt out

    ΔW = scale · B · A            scale as given, or alpha/rank, or 1 where the mapping states neither

``{site}`` stands for any text; it occurs once in a pattern. The mapping may come from a JSON file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter, Layer, Provenance, Update
from lorascope.errors import AdapterError
from lorascope.formats.container import read_container
from lorascope.formats.contents import TensorFile
from lorascope.formats.gguf_file import dense
from lorascope.formats.notes import assumed_scale_note, leftover_notes
from lorascope.formats.pairs import Scale
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.scalars import stated_alpha

_SITE = "{site}"
_TENSORS = ("B", "A", "bias", "magnitude")
_FLAGS = ("transpose_factors", "is_transposed", "is_embedding")
_FIELDS = (*_TENSORS, "alpha", "scale", *_FLAGS)


def from_tensors(tensors: Mapping[str, Any] | str | os.PathLike[str], mapping: Mapping[str, Any]) -> Adapter:
    """An adapter from tensors under any names.

    Args:
        tensors: name → array of NumPy or PyTorch; or the path of a file of them (safetensors, npz, a pickled state
            dict, GGUF).
        mapping: site → fields, or pattern of a name → role, as above. The fields are

            - ``B``, ``A``: names of the factors, [out, rank] and [rank, in]; a convolution's in their own shapes.
            - ``bias``, ``magnitude``: names of a bias beside B, and of DoRA's magnitude.
            - ``scale``: a number; or ``alpha``: a number, or the name of a tensor of one number.
            - ``transpose_factors``: B and A are stored as [rank, out] and [in, rank].
            - ``is_transposed``: the base weight is stored as [in, out].
            - ``is_embedding``: the base is an embedding [count, dim]; then A is [rank, count] and B is [dim, rank].

    Raises:
        AdapterError: where the mapping is not of that form, a tensor that it names is missing, or the shapes do not
            fit.
        MissingExtraError: for pickled files without PyTorch.

    >>> tensors = {"q.up": np.ones((4, 2)), "q.down": np.ones((2, 3))}
    >>> tensors |= {"k.up": np.ones((4, 1)), "k.down": np.ones((1, 3))}
    >>> adapter = from_tensors(tensors, {"model.{site}": {"B": "{site}.up", "A": "{site}.down", "alpha": 4}})
    >>> {site: (update.shape, update.scale) for site, update in adapter.items()}
    {'model.q': ((4, 3), 2.0), 'model.k': ((4, 3), 4.0)}
    >>> [note.code for note in from_tensors(tensors, {"{site}.up": "B", "{site}.down": "A"}).notes]
    ['scale-unknown']
    """
    path = Path(tensors) if isinstance(tensors, str | os.PathLike) else None
    if isinstance(tensors, Mapping):
        file = TensorFile({name: _array(name, value) for name, value in _pairs(tensors, "the tensors")}, {}, "memory")
    else:
        file = read_container(Path(tensors))
    try:
        return _adapter(file, _entries(mapping), path)
    except AdapterError as error:
        error.file = error.file or (str(path) if path else None)
        raise


def _adapter(file: TensorFile, entries: list[_Entry], path: Path | None) -> Adapter:
    sites: dict[str, Update] = {}
    used: dict[str, str] = {}
    assumed: list[str] = []
    for entry in entries:
        for site, keys in entry.found(file):
            if site in sites:
                raise AdapterError("two entries of the mapping are one site", key=site)
            for key in keys.values():
                if used.setdefault(key, site) != site:
                    raise AdapterError(
                        "one tensor fits two sites of the mapping", key=key, found=f"{used[key]}, {site}"
                    )
            sites[site] = _update(site, file, keys, entry, assumed)
    if not sites:
        shown = ", ".join(list(file.tensors)[:3]) or "no tensors"
        raise AdapterError("no tensor fits the mapping", expected=entries[0].expected(), found=shown[:200])
    leftovers = {key: tensor for key, tensor in file.tensors.items() if key not in used}
    notes = (
        [assumed_scale_note(assumed, "the mapping states no scale and no alpha: scale 1", is_unknown=True)]
        if assumed
        else []
    )
    return Adapter(
        sites=sites,
        provenance=Provenance(
            format="mapping",
            kind="dora" if any(update.kind == "dora" for update in sites.values()) else "lora",
            path=path,
            metadata=file.metadata,
        ),
        leftovers=leftovers,
        notes=(*notes, *leftover_notes(leftovers, {})),
    )


@dataclass(frozen=True)
class _Entry:
    """One entry of the mapping: the site's name, the names of its tensors, and the rest of the fields."""

    site: str
    names: Mapping[str, str]
    scale: float | None = None
    alpha: float | None = None
    flags: frozenset[str] = field(default_factory=frozenset[str])

    def expected(self) -> str:
        return " and ".join(self.names[role] for role in ("B", "A"))

    def found(self, file: TensorFile) -> Iterator[tuple[str, dict[str, str]]]:
        """Site, and the name of its tensor for each role."""
        if _SITE not in self.site:
            yield self.site, self._keys("", file, is_pattern=False)
            return
        middles: dict[str, None] = {}
        for key in file.tensors:
            for role in ("B", "A"):
                if (middle := _middle(self.names[role], key)) is not None:
                    middles[middle] = None
        for middle in middles:
            yield self.site.replace(_SITE, middle), self._keys(middle, file, is_pattern=True)

    def _keys(self, middle: str, file: TensorFile, *, is_pattern: bool) -> dict[str, str]:
        keys: dict[str, str] = {}
        for role, pattern in self.names.items():
            key = pattern.replace(_SITE, middle) if is_pattern else pattern
            if key in file.tensors:
                keys[role] = key
            elif role in ("B", "A") or not is_pattern:
                raise AdapterError(
                    f"the tensor {role} of the mapping is missing",
                    key=self.site.replace(_SITE, middle) if is_pattern else self.site,
                    expected=key,
                    found=", ".join(list(file.tensors)[:3]) or "no tensors",
                )
        return keys


def _middle(pattern: str, key: str) -> str | None:
    before, _, after = pattern.partition(_SITE)
    if len(key) <= len(before) + len(after) or not key.startswith(before) or not key.endswith(after):
        return None
    return key[len(before) : len(key) - len(after)]


def _update(site: str, file: TensorFile, keys: Mapping[str, str], entry: _Entry, assumed: list[str]) -> Update:
    tensors = {role: dense(file.tensors[key]) for role, key in keys.items() if role != "alpha"}
    if "transpose_factors" in entry.flags:
        tensors |= {role: tensors[role].T for role in ("B", "A")}
    alpha = stated_alpha(file.tensors[keys["alpha"]], keys["alpha"]) if "alpha" in keys else entry.alpha

    def scale_of(rank: int) -> Scale:
        if entry.scale is not None:
            return Scale(entry.scale, None)
        return Scale(1.0, None, is_assumed=True) if alpha is None else Scale(alpha / rank, alpha)

    if entry.scale is None and alpha is None:
        assumed.append(site)
    layer: Layer = "embedding" if "is_embedding" in entry.flags else "linear"
    names = {role: key for role, key in keys.items() if role != "alpha"}
    parts = Parts(site, tensors, names, scale_of, layer, "is_transposed" in entry.flags)
    if "bias" in parts:
        parts.tensor("bias", None)
    return built("dora" if "magnitude" in parts else "lora", parts)


def _entries(mapping: Mapping[str, Any]) -> list[_Entry]:
    """The entries of a mapping, those of the short form gathered into one."""
    short: dict[str, Any] = {}
    entries: list[_Entry] = []
    for name, value in _pairs(mapping, "the mapping"):
        if isinstance(value, str):
            if value not in (*_TENSORS, "alpha"):
                expected = ", ".join((*_TENSORS, "alpha"))
                raise AdapterError("no such role in a mapping", key=name, expected=expected, found=value[:80])
            if value in short:
                raise AdapterError(f"two patterns of the mapping are {value}", found=f"{short[value]}, {name}")
            short[value] = name
        elif isinstance(value, Mapping):
            entries.append(_entry(name, cast("Mapping[str, Any]", value)))
        else:
            raise AdapterError(
                "an entry of the mapping is neither a role nor fields", key=name, found=type(value).__name__
            )
    if short:
        entries.append(_entry(_SITE, short))
    if not entries:
        raise AdapterError("the mapping is empty", expected='such as {"{site}.up": "B", "{site}.down": "A"}')
    return entries


def _pairs(value: Any, what: str) -> list[tuple[str, Any]]:
    pairs = list(cast("Mapping[Any, Any]", value).items()) if isinstance(value, Mapping) else None
    if pairs is None or not all(isinstance(name, str) for name, _ in pairs):
        raise AdapterError(f"{what} must be an object with names", found=type(cast("object", value)).__name__)
    return pairs


def _entry(site: str, fields: Mapping[str, Any]) -> _Entry:
    unknown = [name for name in fields if name not in _FIELDS]
    if unknown:
        raise AdapterError("no such field in a mapping", key=site, expected=", ".join(_FIELDS), found=unknown[0][:80])
    names: dict[str, str] = {}
    for role in (*_TENSORS, "alpha"):
        value = fields.get(role)
        if isinstance(value, str):
            names[role] = _checked_pattern(site, role, value)
        elif value is not None and role != "alpha":
            raise AdapterError(f"{role} must be the name of a tensor", key=site, found=ascii(value)[:80])
    for role in ("B", "A"):
        if role not in names:
            raise AdapterError(f"the mapping does not say which tensor is {role}", key=site)
    if fields.get("scale") is not None and fields.get("alpha") is not None:
        raise AdapterError("the mapping gives a scale and an alpha; one of them is enough", key=site)
    return _Entry(
        site,
        names,
        scale=_number(site, "scale", fields.get("scale")),
        alpha=None if "alpha" in names else _number(site, "alpha", fields.get("alpha")),
        flags=frozenset(name for name in _FLAGS if _flag(site, name, fields.get(name))),
    )


def _checked_pattern(site: str, role: str, pattern: str) -> str:
    count = 1 if _SITE in site else 0
    if pattern.count(_SITE) != count or site.count(_SITE) > 1:
        raise AdapterError(
            f"{_SITE} must occur once in a pattern, and in the site's name and in its tensors' alike",
            key=site,
            found=f"{role}: {pattern[:80]}",
        )
    return pattern


def _number(site: str, name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise AdapterError(f"{name} must be a finite number", key=site, found=ascii(value)[:80])
    return number


def _flag(site: str, name: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise AdapterError(f"{name} must be true or false", key=site, found=ascii(value)[:80])
    return bool(value)


def _array(name: str, value: Any) -> NDArray[Any]:
    """An array of NumPy, or a dense PyTorch tensor, as NumPy has it; without a copy where it lies in memory."""
    if isinstance(value, np.ndarray):
        return cast("NDArray[Any]", value)
    if not hasattr(value, "detach"):
        raise AdapterError(
            "no array", key=name[:200], expected="an array of NumPy or PyTorch", found=type(value).__name__
        )
    try:
        import torch

        tensor = value.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except (TypeError, RuntimeError, ImportError) as error:
        raise AdapterError(
            "the tensor has no dense array", key=name[:200], found=str(error).partition("\n")[0][:120]
        ) from error
