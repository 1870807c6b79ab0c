"""diffusers: LoRA files of image models, in the three key grammars that the library has had.

    a  <path>.processor.to_q_lora.down.weight / .up.weight                2023, attention processors; scale 1
    b  <path>.to_q.lora.down.weight, <path>.q_proj.lora_linear_layer.down.weight; <site>.alpha may be there
    c  <path>.to_q.lora_A.weight / .lora_B.weight, configuration as JSON in the metadata ``lora_adapter_metadata``

    ΔW = scale · up · down;   scale = alpha/rank, or 1 where the file states no alpha

Source: https://github.com/huggingface/diffusers, src/diffusers/utils/peft_utils.py (``get_peft_kwargs``) and
src/diffusers/loaders/lora_base.py. Component prefixes (``unet.``, ``text_encoder.``) stay in the site names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from numpy.typing import DTypeLike

from lorascope.adapter import Adapter, Note, Provenance
from lorascope.errors import AdapterError
from lorascope.formats.config_file import text_or_none
from lorascope.formats.contents import Contents
from lorascope.formats.notes import assumed_scale_note, leftover_notes
from lorascope.formats.pairs import Half, Halves, Scale, low_rank
from lorascope.formats.peft_folder import PREFIX as PEFT_PREFIX
from lorascope.formats.peft_scale import PEFT_ALPHA, PeftScale
from lorascope.formats.registry import PLAIN, SPECIFIC, Evidence, Format
from lorascope.formats.safetensors_file import write_safetensors
from lorascope.formats.scalars import stated_alpha

_METADATA = "lora_adapter_metadata"
_COMPONENTS = ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "prior")

_PROCESSOR = re.compile(r"(?P<path>.+)\.processor\.(?P<name>\w+)_lora\.(?P<half>down|up)\.weight", re.DOTALL)
_UP_DOWN = re.compile(r"(?P<site>.+)\.(?:lora|lora_linear_layer)\.(?P<half>down|up)\.weight", re.DOTALL)
_PEFT_STYLE = re.compile(r"(?P<site>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight", re.DOTALL)
_ALPHA = re.compile(r"(?P<site>.+?)(?:\.lora|\.lora_linear_layer)?\.alpha", re.DOTALL)


def _parsed(key: str) -> tuple[str, Half] | None:
    if match := _PROCESSOR.fullmatch(key):
        name = "to_out.0" if match["name"] == "to_out" else match["name"]
        return f"{match['path']}.{name}", "A" if match["half"] == "down" else "B"
    if match := _UP_DOWN.fullmatch(key):
        return match["site"], "A" if match["half"] == "down" else "B"
    if match := _PEFT_STYLE.fullmatch(key):
        return match["site"], "A" if match["half"] == "A" else "B"
    return None


def recognise_diffusers(contents: Contents) -> Evidence | None:
    """Grammars a and b have their own keys; c is told by a component prefix or by its metadata."""
    style: str | None = None
    for key in contents.tensors:
        if _PROCESSOR.fullmatch(key):
            return Evidence(SPECIFIC, "keys name attention processors")
        if _UP_DOWN.fullmatch(key):
            return Evidence(SPECIFIC, "keys end lora.down.weight")
        if style is None and _PEFT_STYLE.fullmatch(key) and not key.startswith(PEFT_PREFIX):
            style = key
    if style is None:
        return None
    if _METADATA in contents.metadata:
        return Evidence(SPECIFIC, f"PEFT-style keys with {_METADATA}")
    if style.split(".", 1)[0] in _COMPONENTS:
        return Evidence(PLAIN, "PEFT-style keys with a component prefix")
    return None


def read_diffusers(contents: Contents) -> Adapter:
    """The adapter of a diffusers file.

    Raises:
        AdapterError: where a pair is broken, the metadata is no JSON, or the file is DoRA.
    """
    halves, alphas, leftover_keys = Halves(), dict[str, float | None](), list[str]()
    for key, tensor in contents.tensors.items():
        if "lora_magnitude_vector" in key or key.endswith(".dora_scale"):
            raise AdapterError("DoRA is recognised, but not read by this version", key=key)
        if parsed := _parsed(key):
            halves.add(*parsed, key)
        elif match := _ALPHA.fullmatch(key):
            alphas[match["site"]] = stated_alpha(tensor, key)
        else:
            leftover_keys.append(key)
    pairs = halves.checked()
    leftover_keys += [key for key in contents.tensors if _is_alpha_of_no_site(key, pairs)]
    rule = _ScaleRule(alphas, _component_rules(contents), [], [])
    sites = {
        site: low_rank(site, contents.tensors, keys, lambda rank, site=site: rule(site, rank))
        for site, keys in pairs.items()
    }
    notes: list[Note] = []
    if rule.assumed:
        notes.append(assumed_scale_note(rule.assumed, "no alpha in the file: scale 1"))
    if rule.defaulted:
        why = f"the metadata state no lora_alpha: PEFT's default {PEFT_ALPHA:g}"
        notes.append(assumed_scale_note(rule.defaulted, why))
    leftovers = {key: contents.tensors[key] for key in leftover_keys}
    return Adapter(
        sites=sites,
        provenance=Provenance(
            format="diffusers",
            kind="lora",
            path=contents.path,
            base_model=text_or_none(contents.config or {}, "base_model_name_or_path"),
            config=contents.config or {},
            config_text=contents.config_text,
            metadata=contents.metadata,
        ),
        leftovers=leftovers,
        notes=(*notes, *leftover_notes(leftovers, {})),
    )


def _is_alpha_of_no_site(key: str, pairs: Mapping[str, Any]) -> bool:
    match = None if _parsed(key) else _ALPHA.fullmatch(key)
    return match is not None and match["site"] not in pairs


@dataclass
class _ScaleRule:
    """Alpha tensors first, then the configuration of the component, else 1."""

    alphas: Mapping[str, float | None]
    components: Mapping[str, PeftScale]
    assumed: list[str]
    defaulted: list[str]

    def __call__(self, site: str, rank: int) -> Scale:
        alpha = self.alphas.get(site)
        if alpha is not None:
            return Scale(alpha / rank, alpha)
        for component, rule in self.components.items():
            if not component or site.startswith(f"{component}."):
                scale = rule(site.removeprefix(f"{component}."), rank)
                if scale.is_assumed:
                    self.defaulted.append(site)
                return scale
        self.assumed.append(site)
        return Scale(1.0, None, is_assumed=True)


def _component_rules(contents: Contents) -> dict[str, PeftScale]:
    text = contents.metadata.get(_METADATA)
    if text is None:
        return {}
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise AdapterError("the metadata is no JSON object", key=_METADATA, found=text[:80])
    configs: dict[str, dict[str, Any]] = {}
    for name, field in cast("dict[str, Any]", value).items():
        component, _, key = name.rpartition(".")
        configs.setdefault(component, {})[key] = field
    # the longest component first, so that the one without a name comes last
    order = sorted((name for name, config in configs.items() if "r" in config), key=len, reverse=True)
    return {component: PeftScale.of(configs[component]) for component in order}


def write_diffusers(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write back an unedited adapter of this format: the same tensors and metadata.

    Raises:
        AdapterError: where the adapter comes from another format or was edited.
    """
    if adapter.original is None or adapter.provenance.format != "diffusers" or dtype is not None:
        raise AdapterError(
            "this version writes diffusers files only as they were read",
            expected="an unedited adapter of this format and no dtype",
            hint='write it with format="peft"',
        )
    write_safetensors(path, adapter.original, adapter.provenance.metadata)


FORMATS = (
    Format(
        name="diffusers",
        title="diffusers LoRA",
        reference="https://github.com/huggingface/diffusers",
        recognise=recognise_diffusers,
        read=read_diffusers,
        write=write_diffusers,
    ),
)
