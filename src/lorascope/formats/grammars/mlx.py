"""MLX: ``<site>.lora_a`` and ``.lora_b`` in ``adapters.safetensors`` or ``.npz``, beside ``adapter_config.json``.

    linear     lora_a [in, rank]          lora_b [rank, out]        ΔW = scale · lora_bᵀ · lora_aᵀ
    embedding  lora_a [count, rank]       lora_b [rank, dim]        ΔW [count, dim] = scale · lora_a · lora_b
    experts    lora_a [E, rank, in]       lora_b [E, out, rank]     not transposed; older files: lora_a [E · rank, in]
    DoRA       <site>.m [out], of an embedding [count]: the norms run over each stored row

The scale is ``lora_parameters.scale`` as it stands; the rank does not divide it and ``alpha`` is ignored. Experts
become one site each, ``<path>[0]``, ``<path>[1]`` … Whether a site is an embedding is told by its name.

Source: https://github.com/ml-explore/mlx-lm, mlx_lm/tuner/lora.py, dora.py and utils.py; the older trainer is
https://github.com/ml-explore/mlx-examples, lora/.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, Layer, LowRank, Note, Provenance, Update
from lorascope.adapter.site import expert_of, experts_of, is_rows
from lorascope.errors import AdapterError
from lorascope.formats.config_file import mapping, text_or_none
from lorascope.formats.contents import Contents
from lorascope.formats.dtypes import cast_to
from lorascope.formats.embedding_names import is_embedding
from lorascope.formats.folding import times
from lorascope.formats.notes import assumed_scale_note, leftover_notes
from lorascope.formats.output_file import written_folder
from lorascope.formats.pairs import Scale
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.parametrisations.dora import DoRA
from lorascope.formats.peft_fields import padded
from lorascope.formats.plain_factors import outlined, worked_out
from lorascope.formats.refusals import at_site, check
from lorascope.formats.registry import SPECIFIC, STATED, Evidence, Format
from lorascope.formats.stream_file import Unit, site_unit, units_of, write_units
from lorascope.formats.unedited_file import is_unedited

DEFAULT_SCALE = 20.0
"""The scale of the layers since January 2024; the trainer of December 2023 had 2.0 written into its forward pass."""

_ROLES = {"lora_a": "A", "lora_b": "B", "m": "magnitude"}
_KEY = re.compile(r"(?P<site>.+)\.(?P<role>lora_a|lora_b|m)", re.DOTALL)
_WITHIN_LAYER = re.compile(r".*?\.\d+\.(?P<key>.+)", re.DOTALL)


def recognise_mlx(contents: Contents) -> Evidence | None:
    """The configuration of the trainer, or keys that end ``lora_a`` and ``lora_b`` in lower case."""
    if contents.container == "gguf":  # whose keys end alike
        return None
    config = contents.config or {}
    if "fine_tune_type" in config or ("lora_parameters" in config and "peft_type" not in config):
        return Evidence(STATED, "the configuration is that of the MLX trainer")
    key = next((key for key in contents.tensors if key.endswith((".lora_a", ".lora_b"))), None)
    return None if key is None else Evidence(SPECIFIC, f"keys such as {key[-80:]}")


def read_mlx(contents: Contents) -> Adapter:
    """The adapter of an MLX file.

    Raises:
        AdapterError: where a half is missing, the shapes do not fit, the scale is no number, or the file holds
            whole weights (``fine_tune_type`` full).
    """
    config = contents.config or {}
    if config.get("fine_tune_type") == "full":
        raise AdapterError(
            "the file holds whole weights and no adapter", key="fine_tune_type", expected="lora or dora", found="full"
        )
    found, leftover_keys = _parsed(contents)
    scale = _stated_scale(config)
    sites: dict[str, Update] = {}
    for site, keys in found.items():
        _check_pair(site, keys)
        for name, parts in _parts(site, contents, keys, scale):
            if name in sites:
                raise AdapterError("two tensors are one expert", key=name)
            sites[name] = built("dora" if "magnitude" in parts else "lora", parts)
    notes: list[Note] = []
    if scale.is_assumed and sites:
        why = f"not in the file: {DEFAULT_SCALE:g}, MLX's default (2 in files of December 2023)"
        notes.append(assumed_scale_note(list(sites), why, is_unknown=True))
    leftovers = {key: contents.tensors[key] for key in leftover_keys}
    return Adapter(
        sites=sites,
        provenance=Provenance(
            format="mlx",
            kind="dora" if any(update.kind == "dora" for update in sites.values()) else "lora",
            path=contents.path,
            base_model=text_or_none(config, "model"),
            config=config,
            config_text=contents.config_text,
            metadata=contents.metadata,
        ),
        leftovers=leftovers,
        notes=(*notes, *leftover_notes(leftovers, {})),
    )


def _parsed(contents: Contents) -> tuple[dict[str, dict[str, str]], list[str]]:
    found: dict[str, dict[str, str]] = {}
    leftovers: list[str] = []
    for key in contents.tensors:
        if match := _KEY.fullmatch(key):
            found.setdefault(match["site"], {})[_ROLES[match["role"]]] = key
        else:
            leftovers.append(key)
    alone = [site for site, keys in found.items() if keys.keys() == {"magnitude"}]
    leftovers += [found.pop(site)["magnitude"] for site in alone]
    if not found:
        raise AdapterError(
            "no LoRA tensors, although the configuration is that of the MLX trainer",
            expected="keys that end lora_a and lora_b",
            found=f"{len(contents.tensors)} other tensors" if contents.tensors else "no tensors",
        )
    return found, leftovers


def _check_pair(site: str, keys: Mapping[str, str]) -> None:
    for role, name, other in (("A", "lora_a", "lora_b"), ("B", "lora_b", "lora_a")):
        if role not in keys:
            raise AdapterError(
                f"{other} without {name} at site {site}", expected="both factors", found=", ".join(keys.values())
            )


def _stated_scale(config: Mapping[str, Any]) -> Scale:
    """``lora_parameters.scale``; alpha is kept as a fact where it is a number, and never used."""
    parameters = mapping(config, "lora_parameters")
    scale, alpha = _number(parameters.get("scale")), _number(parameters.get("alpha"))
    if parameters.get("scale") is None:
        return Scale(DEFAULT_SCALE, None, is_assumed=True)
    if scale is None:
        raise AdapterError(
            "the scale must be a finite number",
            key="lora_parameters.scale",
            found=ascii(parameters["scale"])[:80],
        )
    return Scale(scale, alpha)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _parts(site: str, contents: Contents, keys: Mapping[str, str], scale: Scale) -> Iterator[tuple[str, Parts]]:
    tensors = {role: contents.tensors[key] for role, key in keys.items()}
    layer: Layer = "embedding" if is_embedding(site) else "linear"
    for role, tensor in tensors.items():
        if tensor.ndim not in ((1,) if role == "magnitude" else (2, 3)):
            raise AdapterError(f"{keys[role]} has the wrong number of axes", key=site, found=list(tensor.shape))

    def parts(name: str, tensors: Mapping[str, NDArray[Any]]) -> tuple[str, Parts]:
        return name, Parts(name, tensors, keys, lambda rank: scale, layer)

    A, B = tensors["A"], tensors["B"]
    if A.ndim == 2 and B.ndim == 2:
        factors = {"A": A.T, "B": B.T}
        if "magnitude" in tensors:
            m = tensors["magnitude"]
            factors["magnitude"] = m.reshape(1, -1) if layer == "embedding" else m
        yield parts(site, factors)
        return
    experts = _expert_factors(site, A, B)
    if "magnitude" in tensors:
        raise AdapterError("a magnitude beside the factors of experts", key=site, found=keys["magnitude"])
    for index, (down, up) in enumerate(zip(*experts, strict=True)):
        yield parts(f"{site}[{index}]", {"A": down, "B": up})


def _expert_factors(site: str, A: NDArray[Any], B: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """A [E, rank, in] and B [E, out, rank]; older files have A as [E · rank, in]."""
    is_older = B.ndim == 3 and A.ndim == 2 and A.shape[0] == B.shape[0] * B.shape[2]
    downs = A.reshape(B.shape[0], B.shape[2], A.shape[1]) if is_older else A
    if downs.ndim != 3 or B.ndim != 3 or downs.shape[:2] != (B.shape[0], B.shape[2]) or not downs.size:
        raise AdapterError(
            "the factors of the experts do not make products",
            key=site,
            expected="lora_a [experts, rank, in] and lora_b [experts, out, rank]",
            found=f"{list(A.shape)} and {list(B.shape)}",
        )
    return downs, B


def write_mlx(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write the folder ``path``: ``adapters.safetensors`` and ``adapter_config.json``, which mlx-lm loads.

    MLX has one scale for all sites. The commonest one is taken; at the others lora_b is multiplied by the ratio, which
    is exact where the ratio is a power of two and rounded once in the dtype of lora_b elsewhere. Ranks may differ:
    mlx-lm builds its layers with one rank and then loads the tensors with ``load_weights(strict=False)``, which takes
    them in their own shapes; the configuration states the largest. An unedited MLX adapter is written as it was.

    Raises:
        AdapterError: where a site is a convolution, has a bias or a transposed base, is DoRA beside sites that are
            not, or the experts of one path do not fit together.
        OutputError: where the folder cannot be written.
    """
    if is_unedited(adapter, ("mlx",), dtype):
        units, metadata = units_of(adapter.original or {}), adapter.provenance.metadata
        config_text = adapter.provenance.config_text
    else:
        units, config = _written(adapter, dtype)
        metadata, config_text = {"format": "mlx"}, json.dumps(config, indent=4, sort_keys=True)
    with written_folder(path) as folder:
        write_units(folder / "adapters.safetensors", units, metadata)
        if config_text is not None:
            (folder / "adapter_config.json").write_bytes(config_text.encode("utf-8"))


def _written(adapter: Adapter, dtype: DTypeLike | None) -> tuple[list[Unit], dict[str, Any]]:
    if not adapter.sites:
        raise AdapterError("an adapter without sites cannot be written to this format")
    check(mlx_refusals(adapter))
    updates = {site: _plain(site, outlined(update)) for site, update in adapter.items()}
    scale = Counter(update.scale or 1.0 for update in updates.values()).most_common(1)[0][0]
    units: list[Unit] = [
        site_unit(site, _site_tensors, site, adapter[site], scale, dtype) for site in updates if expert_of(site) is None
    ]
    units += [
        site_unit(path, _expert_tensors, path, {site: adapter[site] for _, site in sorted(sites.items())}, scale, dtype)
        for path, sites in experts_of(updates).items()
    ]
    config: dict[str, Any] = {
        "fine_tune_type": "dora" if any(isinstance(update, DoRA) for update in adapter.values()) else "lora",
        "num_layers": -1,
        "lora_parameters": {
            "rank": max(update.rank for update in updates.values()),
            "scale": scale,
            "dropout": 0.0,
            "keys": sorted({_module_key(site) for site in updates}),
        },
    }
    if adapter.provenance.base_model is not None:
        config["model"] = adapter.provenance.base_model
    if adapter.provenance.format == "mlx":
        units += units_of(adapter.leftovers)
    return units, config


def mlx_refusals(adapter: Adapter) -> Iterator[AdapterError]:
    """An error for each site that MLX has no place for, beside the others that there are."""
    kinds = {isinstance(update, DoRA) for update in adapter.values()}
    updates: dict[str, LowRank] = {}
    for site, update in adapter.items():
        try:
            if is_rows(site):
                raise AdapterError("MLX adapts whole layers, and this site is some rows of one")
            if len(kinds) > 1 and not isinstance(update, DoRA):
                raise AdapterError("MLX states once for all sites whether they are LoRA or DoRA, and here they differ")
            updates[site] = _plain(site, outlined(update))
        except AdapterError as error:
            yield at_site(error, site)
    for sites in experts_of(updates).values():
        ones = [updates[site] for site in sites.values()]
        shapes = {(one.A.shape, one.B.shape, one.A.dtype, one.B.dtype) for one in ones}
        if sorted(sites) != list(range(len(sites))) or len(shapes) > 1:
            for site in sites.values():
                yield AdapterError(
                    "MLX keeps all experts of a layer in one tensor, and these do not fit together",
                    key=site,
                    expected="experts 0 … n of one shape, rank and dtype",
                    found=f"{len(sites)} experts, {len(shapes)} shapes, the last number {max(sites)}",
                )


def _plain(site: str, update: Update) -> LowRank:
    """The low-rank part of a site that MLX has a layer for."""
    inner = update.inner if isinstance(update, DoRA) else update
    if not isinstance(inner, LowRank):
        raise AdapterError("MLX files hold only LoRA and DoRA", found=inner.kind)
    has_rows = inner.layer == "embedding"
    if isinstance(update, DoRA) and expert_of(site) is not None:
        raise AdapterError("MLX has no magnitude for experts")
    if isinstance(update, DoRA) and (update.axis == "in") != has_rows:
        raise AdapterError("MLX norms each stored row, and this magnitude is for columns")
    if inner.layer not in ("linear", "embedding") or (inner.is_transposed != has_rows):
        kind = f"{'transposed ' * inner.is_transposed}{inner.layer}"
        raise AdapterError("MLX has no LoRA for such a layer", expected="linear, embedding", found=kind)
    if has_rows != is_embedding(site):
        raise AdapterError("an MLX file tells embeddings by their names, and this one tells wrong")
    if inner.bias is not None:
        raise AdapterError("MLX has no bias in a LoRA layer")
    return padded(inner)


def _pair(site: str, update: Update, scale: float, dtype: DTypeLike | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """A and B of a site under the one scale of the file."""
    plain = _plain(site, worked_out(update))
    A = plain.A if dtype is None else cast_to(plain.A, dtype)
    return A, times(plain.B, plain.scale / scale, dtype)


def _site_tensors(site: str, update: Update, scale: float, dtype: DTypeLike | None) -> dict[str, NDArray[Any]]:
    A, B = _pair(site, update, scale, dtype)
    tensors = {f"{site}.lora_a": A.T, f"{site}.lora_b": B.T}
    if isinstance(update, DoRA):
        magnitude = update.stored["magnitude"].reshape(-1)
        tensors[f"{site}.m"] = magnitude if dtype is None else cast_to(magnitude, dtype)
    return tensors


def _expert_tensors(
    path: str, updates: Mapping[str, Update], scale: float, dtype: DTypeLike | None
) -> dict[str, NDArray[Any]]:
    pairs = [_pair(site, update, scale, dtype) for site, update in updates.items()]
    return {f"{path}.lora_a": np.stack([A for A, _ in pairs]), f"{path}.lora_b": np.stack([B for _, B in pairs])}


def _module_key(site: str) -> str:
    """The name that ``lora_parameters.keys`` has for a module: within its layer, else in full.

    >>> _module_key("model.layers.3.self_attn.q_proj"), _module_key("lm_head")
    ('self_attn.q_proj', 'lm_head')
    """
    if expert := expert_of(site):
        site = expert[0]
    match = _WITHIN_LAYER.fullmatch(site)
    return match["key"] if match else site


FORMATS = (
    Format(
        name="mlx",
        title="MLX LoRA",
        reference="https://github.com/ml-explore/mlx-lm",
        recognise=recognise_mlx,
        read=read_mlx,
        write=write_mlx,
        refusals=mlx_refusals,
        is_folder=True,
        folder_files=("adapters.safetensors", "adapter_config.json"),
        base_field="model",
        kinds=("lora", "dora"),
        writes=("lora", "dora"),
        files="`adapters.safetensors` or `adapters.npz` with `lora_a`/`lora_b`, `adapter_config.json`; linear, "
        "embedding, experts",
    ),
)
