"""Flux LoRA under names of their own: XLabs' attention processors, and the control LoRA of Black Forest Labs.

XLabs: ``double_blocks.N.processor.qkv_lora1.down.weight`` / ``.up.weight``; 1 is the image stream, 2 the text stream.

    qkv_lora1 → img_attn.qkv     qkv_lora2 → txt_attn.qkv     proj_lora1 → img_attn.proj     proj_lora2 → txt_attn.proj
    single_blocks.N.processor.qkv_lora → linear1, of which it changes the rows of q, k and v:  linear1[0:rows]
    single_blocks.N.processor.proj_lora → linear2

BFL control: ``double_blocks.N.img_attn.qkv.lora_A.weight``, ``.lora_B.weight``, ``.lora_B.bias``, and norms as whole
tensors ``….norm.query_norm.scale``, which take the place of the base's. The input layer may be wider than the base's.

    ΔW = B · A, Δbias = bias; no scale

Source: https://github.com/XLabs-AI/x-flux, src/flux/modules/layers.py; https://github.com/black-forest-labs/flux;
https://github.com/huggingface/diffusers, src/diffusers/loaders/lora_conversion_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from numpy.typing import DTypeLike

from lorascope.adapter import Adapter, Provenance, Update
from lorascope.errors import AdapterError
from lorascope.formats.contents import Contents
from lorascope.formats.kohya_sites import kind_of
from lorascope.formats.notes import leftover_notes
from lorascope.formats.pairs import Scale
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.registry import SPECIFIC, Evidence, Format
from lorascope.formats.unscaled_file import Keys, unscaled_refusals, write_unscaled

_XLABS = re.compile(
    r"(?:diffusion_model\.)?(?P<stream>double|single)_blocks\.(?P<block>\d+)\.processor"
    r"\.(?P<layer>qkv|proj)_lora(?P<side>[12]?)\.(?P<half>down|up)\.weight"
)
_LAYERS: Mapping[tuple[str, str, str], str] = {
    ("double", "qkv", "1"): "img_attn.qkv",
    ("double", "qkv", "2"): "txt_attn.qkv",
    ("double", "proj", "1"): "img_attn.proj",
    ("double", "proj", "2"): "txt_attn.proj",
    ("single", "qkv", ""): "linear1",
    ("single", "proj", ""): "linear2",
}
_XLABS_SITE = re.compile(
    r"transformer\.(?P<stream>double|single)_blocks\.(?P<block>\d+)\.(?P<layer>[a-z_]+(?:\.[a-z]+|\d)?)"
    r"(?P<part>\[0:(?P<rows>\d{1,12})\])?"
)
_CONTROL = re.compile(
    r"(?P<site>(?:double_blocks|single_blocks|img_in|txt_in|time_in|vector_in|guidance_in|final_layer)(?:\.\w+)*)"
    r"\.(?:lora_(?P<half>[AB])\.(?P<what>weight|bias)|(?P<scale>scale))"
)
_NORM = re.compile(r".*\.(query_norm|key_norm)")


def _unscaled(rank: int) -> Scale:
    return Scale(1.0, None)


def recognise_xlabs(contents: Contents) -> Evidence | None:
    """Keys name the processors of Flux blocks."""
    if any(_XLABS.fullmatch(key) for key in contents.tensors):
        return Evidence(SPECIFIC + 20, "keys name the processors of Flux blocks")
    return None


def read_xlabs(contents: Contents) -> Adapter:
    """The adapter of an XLabs file.

    Raises:
        AdapterError: where a pair is broken, or a processor is of no known layer.
    """
    keys: dict[str, dict[str, str]] = {}
    left: list[str] = []
    for key in contents.tensors:
        match = _XLABS.fullmatch(key)
        if match is None:
            left.append(key)
            continue
        layer = _LAYERS.get((match["stream"], match["layer"], match["side"]))
        if layer is None:
            raise AdapterError("a processor of no known layer of Flux", key=key)
        roles = keys.setdefault(f"transformer.{match['stream']}_blocks.{match['block']}.{layer}", {})
        role = "A" if match["half"] == "down" else "B"
        if role in roles:
            raise AdapterError("two tensors are one factor of one site", key=key, found=roles[role])
        roles[role] = key
    sites: dict[str, Update] = {}
    for site, roles in keys.items():
        update = _update(site, "lora", roles, contents)
        sites[f"{site}[0:{update.shape[0]}]" if site.endswith(".linear1") else site] = update
    return _adapter(sites, left, contents, "xlabs")


def recognise_bfl_control(contents: Contents) -> Evidence | None:
    """PEFT-style keys on the bare names of Flux blocks."""
    for key in contents.tensors:
        match = _CONTROL.fullmatch(key)
        if match and match["half"] and key.startswith(("double_blocks.", "single_blocks.")):
            return Evidence(SPECIFIC, "lora_A and lora_B on the bare names of Flux blocks")
    return None


def read_bfl_control(contents: Contents) -> Adapter:
    """The adapter of a control LoRA of Flux.

    Raises:
        AdapterError: where a pair is broken, or the first factor has a bias.
    """
    keys: dict[str, dict[str, str]] = {}
    left: list[str] = []
    for key in contents.tensors:
        match = _CONTROL.fullmatch(key)
        if match is None or (match["scale"] and not _NORM.fullmatch(match["site"])):
            left.append(key)
            continue
        if match["half"] == "A" and match["what"] == "bias":
            raise AdapterError("recognised, but not read by this version: a bias of the first factor", key=key)
        role = "weight" if match["scale"] else "bias" if match["what"] == "bias" else match["half"]
        keys.setdefault(f"transformer.{match['site']}", {})[role] = key
    sites = {
        site: _update(site, "replaced" if set(roles) == {"weight"} else "lora", roles, contents)
        for site, roles in keys.items()
    }
    return _adapter(sites, left, contents, "bfl-control")


def _update(site: str, kind: str, roles: Mapping[str, str], contents: Contents) -> Update:
    tensors = {role: contents.tensors[key] for role, key in roles.items()}
    if kind == "lora" and not {"A", "B"} <= set(roles):
        raise AdapterError(
            f"{next(iter(roles.values()))} has no partner", key=site, expected="both factors", found=", ".join(roles)
        )
    return built(kind, Parts(site=site, tensors=tensors, keys=roles, scale_of=_unscaled))


def _adapter(sites: Mapping[str, Update], left: list[str], contents: Contents, format: str) -> Adapter:
    leftovers = {key: contents.tensors[key] for key in left}
    return Adapter(
        sites=sites,
        provenance=Provenance(
            format=format,
            kind=kind_of(sites.values()),
            path=contents.path,
            config=contents.config or {},
            config_text=contents.config_text,
            metadata=contents.metadata,
        ),
        leftovers=leftovers,
        notes=tuple(leftover_notes(leftovers, {})),
    )


def write_xlabs(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write one file of attention processors, as ``write_unscaled``.

    Raises:
        AdapterError: where a site is none of the layers that have a processor.
        OutputError: where the file cannot be written.
    """
    write_unscaled(adapter, path, dtype, format="xlabs", keys_of=_xlabs_keys)


def _xlabs_keys(site: str, update: Update) -> Keys:
    match = _XLABS_SITE.fullmatch(site)
    layers = {(stream, layer): (name, side) for (stream, name, side), layer in _LAYERS.items()}
    found = None if match is None else layers.get((match["stream"], match["layer"]))
    is_part = match is not None and match["part"] is not None
    rows = int(match["rows"]) if match is not None and is_part else None
    if (
        match is None
        or found is None
        or is_part != (match["layer"] == "linear1")
        or rows not in (None, update.shape[0])
    ):
        raise AdapterError(
            "XLabs' files have only the attention layers of Flux blocks, and of linear1 the rows of q, k and v",
            key=site,
            expected="a site such as transformer.double_blocks.0.img_attn.qkv or transformer.single_blocks.0.linear2",
        )
    start = f"{match['stream']}_blocks.{match['block']}.processor.{found[0]}_lora{found[1]}"
    return Keys(f"{start}.up.weight", f"{start}.down.weight")


def write_bfl_control(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write one control LoRA, as ``write_unscaled``.

    Raises:
        AdapterError: where a site is no layer of Flux under the names of Black Forest Labs.
        OutputError: where the file cannot be written.
    """
    write_unscaled(adapter, path, dtype, format="bfl-control", keys_of=_control_keys)


def _control_keys(site: str, update: Update) -> Keys:
    path = site.removeprefix("transformer.")
    is_norm = update.kind == "replaced"
    key = f"{path}.scale" if is_norm else f"{path}.lora_B.weight"
    if path == site or not _CONTROL.fullmatch(key) or (is_norm and not _NORM.fullmatch(path)):
        raise AdapterError(
            "a control LoRA has only layers of Flux under the names of Black Forest Labs, and norms of q and k",
            key=site,
            expected="a site such as transformer.double_blocks.0.img_attn.qkv",
        )
    return Keys(f"{path}.lora_B.weight", f"{path}.lora_A.weight", f"{path}.lora_B.bias", f"{path}.scale")


_BLOCKS = ("transformer.double_blocks.0.img_attn.qkv", "transformer.double_blocks.7.txt_attn.proj")

FORMATS = (
    Format(
        name="xlabs",
        title="XLabs Flux LoRA",
        reference="https://github.com/XLabs-AI/x-flux",
        recognise=recognise_xlabs,
        read=read_xlabs,
        write=write_xlabs,
        refusals=partial(unscaled_refusals, keys_of=_xlabs_keys),
        names_rows=True,
        writes=("lora",),
        site_examples=(*_BLOCKS, "transformer.single_blocks.3.linear2"),
        files="`double_blocks.N.processor.qkv_lora1.down.weight`",
    ),
    Format(
        name="bfl-control",
        title="Flux control LoRA",
        reference="https://github.com/black-forest-labs/flux",
        recognise=recognise_bfl_control,
        read=read_bfl_control,
        write=write_bfl_control,
        refusals=partial(unscaled_refusals, keys_of=_control_keys),
        kinds=("lora", "replaced"),
        writes=("lora", "replaced"),
        site_examples=(*_BLOCKS, "transformer.double_blocks.0.img_attn.norm.query_norm"),
        files="`double_blocks.N.img_attn.qkv.lora_A.weight`, `.lora_B.bias`, norms whole",
    ),
)
