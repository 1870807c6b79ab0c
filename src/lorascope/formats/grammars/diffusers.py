"""diffusers: LoRA files of image models, in the three key grammars that the library has had.

    a  <path>.processor.to_q_lora.down.weight / .up.weight                2023, attention processors; scale 1
    b  <path>.to_q.lora.down.weight, <path>.q_proj.lora_linear_layer.down.weight; <site>.alpha may be there
    c  <path>.to_q.lora_A.weight / .lora_B.weight, configuration as JSON in the metadata ``lora_adapter_metadata``

    ΔW = scale · up · down;   scale = alpha/rank, or 1 where the file states no alpha
    <site>.lora_magnitude_vector: DoRA;   <site>.lora_B.bias: the layer's bias changes by scale · bias

Written are files of grammar c with their metadata, which ``load_lora_weights`` and ``load_lora_adapter`` load.

Source: https://github.com/huggingface/diffusers, src/diffusers/utils/peft_utils.py (``get_peft_kwargs``),
src/diffusers/utils/state_dict_utils.py, src/diffusers/loaders/lora_base.py and src/diffusers/loaders/peft.py.
Component prefixes (``unet.``, ``text_encoder.``) stay in the site names; files without one keep none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from lorascope.adapter import Adapter, Provenance, Update
from lorascope.errors import AdapterError
from lorascope.formats.config_file import flag, text_or_none
from lorascope.formats.contents import Contents, Tensors
from lorascope.formats.diffusers_file import METADATA, WEIGHTS_NAME, component_of, diffusers_refusals, write_diffusers
from lorascope.formats.name_patterns import Budget
from lorascope.formats.notes import assumed_scale_note, leftover_notes, repeated_notes
from lorascope.formats.pairs import Half, Halves, Scale
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.peft_keys import PREFIX as PEFT_PREFIX
from lorascope.formats.peft_scale import PEFT_ALPHA, PeftScale
from lorascope.formats.registry import PLAIN, SPECIFIC, Evidence, Format
from lorascope.formats.scalars import stated_alpha

_PROCESSOR = re.compile(r"(?P<path>.+)\.processor\.(?P<name>\w+)_lora\.(?P<half>down|up)\.weight", re.DOTALL)
_OLD_TEXT = re.compile(r"(?P<path>.+\.self_attn)\.to_(?P<name>q|k|v|out)_lora\.(?P<half>down|up)\.weight", re.DOTALL)
_UP_DOWN = re.compile(r"(?P<site>.+)\.(?:lora|lora_linear_layer)\.(?P<half>down|up)\.weight", re.DOTALL)
_PEFT_STYLE = re.compile(r"(?P<site>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight", re.DOTALL)
_ALPHA = re.compile(r"(?P<site>.+?)(?:\.lora|\.lora_linear_layer)?\.alpha", re.DOTALL)
_EXTRAS: Mapping[str, re.Pattern[str]] = {
    "bias": re.compile(r"(?P<site>.+)\.(?:lora_B(?:\.default)?|lora\.up|lora_linear_layer\.up)\.bias", re.DOTALL),
    "magnitude": re.compile(
        r"(?P<site>.+)\.(?:lora_magnitude_vector(?:\.default)?(?:\.weight)?|dora_scale)", re.DOTALL
    ),
}


def _parsed(key: str) -> tuple[str, Half] | None:
    if match := _PROCESSOR.fullmatch(key):
        name = "to_out.0" if match["name"] == "to_out" else match["name"]
        return f"{match['path']}.{name}", "A" if match["half"] == "down" else "B"
    if match := _OLD_TEXT.fullmatch(key):
        return f"{match['path']}.{match['name']}_proj", "A" if match["half"] == "down" else "B"
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
        if _UP_DOWN.fullmatch(key) or _OLD_TEXT.fullmatch(key):
            return Evidence(SPECIFIC, "keys end lora.down.weight")
        if style is None and _PEFT_STYLE.fullmatch(key) and not key.startswith(PEFT_PREFIX):
            style = key
    if style is None:
        return None
    if METADATA in contents.metadata:
        return Evidence(SPECIFIC, f"PEFT-style keys with {METADATA}")
    if component_of(style):
        return Evidence(PLAIN, "PEFT-style keys with a component prefix")
    return None


def read_diffusers(contents: Contents) -> Adapter:
    """The adapter of a diffusers file.

    Raises:
        AdapterError: where a pair is broken, the metadata is no JSON, or a magnitude that it promises is missing.
    """
    halves, alpha_keys, leftover_keys = Halves(), dict[str, list[str]](), list[str]()
    extras: dict[str, dict[str, str]] = {}
    for key in contents.tensors:
        if parsed := _parsed(key):
            halves.add(*parsed, key)
        elif match := _ALPHA.fullmatch(key):
            alpha_keys.setdefault(match["site"], []).append(key)
        elif not _add_extra(extras, key):
            leftover_keys.append(key)
    pairs = halves.checked()
    leftover_keys += [key for key in contents.tensors if _is_alpha_of_no_site(key, pairs)]
    extras = {_site_of_extra(site, pairs): roles for site, roles in extras.items()}
    leftover_keys += [key for site, roles in extras.items() if site not in pairs for key in roles.values()]
    alphas = {site: _alpha(contents.tensors, site, keys) for site, keys in alpha_keys.items() if site in pairs}
    rule = _ScaleRule(alphas, _component_rules(contents))
    sites: dict[str, Update] = {}
    for site, keys in pairs.items():
        sites[site] = _update(site, contents.tensors, {"B": keys[0], "A": keys[1], **extras.get(site, {})}, rule)
    notes = repeated_notes(contents.metadata.get(METADATA), f"the metadata {METADATA}")
    # grammars a and b have no other place for alpha; a file of c may have lost its metadata
    old = [site for site in rule.assumed if not _PEFT_STYLE.fullmatch(pairs[site][0])]
    if old:
        notes.append(assumed_scale_note(old, "no alpha in the file, which is alpha = rank: scale 1", is_decided=True))
    if assumed := [site for site in rule.assumed if site not in set(old)]:
        notes.append(assumed_scale_note(assumed, "no alpha in the file: scale 1"))
    if rule.defaulted:
        why = f"the metadata state no lora_alpha: PEFT's default {PEFT_ALPHA:g}"
        notes.append(assumed_scale_note(rule.defaulted, why))
    leftovers = {key: contents.tensors[key] for key in leftover_keys}
    return Adapter(
        sites=sites,
        provenance=Provenance(
            format="diffusers",
            kind="dora" if any(update.kind == "dora" for update in sites.values()) else "lora",
            path=contents.path,
            base_model=text_or_none(contents.config or {}, "base_model_name_or_path"),
            config=contents.config or {},
            config_text=contents.config_text,
            metadata=contents.metadata,
        ),
        leftovers=leftovers,
        notes=(*notes, *leftover_notes(leftovers, {})),
    )


def _alpha(tensors: Tensors, site: str, keys: list[str]) -> float | None:
    """The one alpha that the tensors of a site state."""
    stated = {key: stated_alpha(tensors[key], key) for key in keys}
    if len(set(stated.values())) > 1:
        raise AdapterError(
            "two tensors state different alphas of one site",
            key=site,
            expected="one alpha",
            found=" and ".join(f"{key} = {alpha or 0.0:g}" for key, alpha in stated.items()),
            hint="take out the one that the trainer did not mean",
            code="duplicate-keys",
        )
    return stated[keys[0]]


def _add_extra(extras: dict[str, dict[str, str]], key: str) -> bool:
    for role, pattern in _EXTRAS.items():
        if match := pattern.fullmatch(key):
            roles = extras.setdefault(match["site"], {})
            if role in roles:
                raise AdapterError(f"two tensors are the {role} of one site", key=match["site"], found=key)
            roles[role] = key
            return True
    return False


def _site_of_extra(site: str, pairs: Mapping[str, Any]) -> str:
    """Attention processors keep their magnitudes under the module's older name."""
    plain = site.replace(".processor.", ".")
    return f"{plain}.0" if f"{plain}.0" in pairs and plain.endswith(".to_out") else plain


def _is_alpha_of_no_site(key: str, pairs: Mapping[str, Any]) -> bool:
    match = None if _parsed(key) else _ALPHA.fullmatch(key)
    return match is not None and match["site"] not in pairs


def _update(site: str, tensors: Tensors, keys: Mapping[str, str], rule: _ScaleRule) -> Update:
    parts = Parts(
        site,
        {role: tensors[key] for role, key in keys.items()},
        keys,
        lambda rank: rule(site, rank),
    )
    if "bias" in parts:
        parts.tensor("bias", None)
    return built("dora" if "magnitude" in parts or rule.is_dora(site) else "lora", parts)


@dataclass(frozen=True)
class _Component:
    """What the metadata say of one component."""

    scale: PeftScale
    is_dora: bool


@dataclass
class _ScaleRule:
    """The alpha tensor of the site and the configuration of its component, which must agree; else 1.

    diffusers takes the configuration where there is one, and ComfyUI the tensor.
    """

    alphas: Mapping[str, float | None]
    components: Mapping[str, _Component]
    assumed: list[str] = field(default_factory=list[str])
    defaulted: list[str] = field(default_factory=list[str])

    def __call__(self, site: str, rank: int) -> Scale:
        alpha = self.alphas.get(site)
        name, component = self._of(site)
        if component is None and alpha is None:
            self.assumed.append(site)
            return Scale(1.0, None, is_assumed=True)
        stated = None if alpha is None else Scale(alpha / rank, alpha)
        if component is None:
            return stated or Scale(1.0, None)
        scale = component.scale(site.removeprefix(f"{name}."), rank)
        if stated is not None:
            return self._agreed(site, stated, scale)
        if scale.is_assumed:
            self.defaulted.append(site)
        return scale

    def _agreed(self, site: str, stated: Scale, configured: Scale) -> Scale:
        if not configured.is_assumed and stated.scale != configured.scale:
            raise AdapterError(
                "the alpha tensor and the metadata state different scales of one site",
                key=site,
                expected=f"{configured.scale:g}, as {METADATA} states",
                found=f"{stated.scale:g} of alpha {stated.alpha:g}",
            )
        return stated

    def is_dora(self, site: str) -> bool:
        """Whether the metadata say that the component of the site has magnitudes."""
        component = self._of(site)[1]
        return component is not None and component.is_dora

    def _of(self, site: str) -> tuple[str, _Component | None]:
        for name, component in self.components.items():
            if not name or site.startswith(f"{name}."):
                return name, component
        return "", None


def _component_rules(contents: Contents) -> dict[str, _Component]:
    text = contents.metadata.get(METADATA)
    if text is None:
        return {}
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise AdapterError("the metadata is no JSON object", key=METADATA, found=text[:80])
    configs: dict[str, dict[str, Any]] = {}
    for name, entry in cast("dict[str, Any]", value).items():
        component, _, key = name.rpartition(".")
        configs.setdefault(component, {})[key] = entry
    # the longest component first, so that the one without a name comes last
    order = sorted((name for name, config in configs.items() if "r" in config), key=len, reverse=True)
    budget = Budget()
    return {
        name: _Component(PeftScale.of(configs[name], budget=budget), flag(configs[name], "use_dora")) for name in order
    }


FORMATS = (
    Format(
        name="diffusers",
        title="diffusers LoRA",
        reference="https://github.com/huggingface/diffusers",
        recognise=recognise_diffusers,
        read=read_diffusers,
        write=write_diffusers,
        refusals=diffusers_refusals,
        needed_metadata=frozenset({METADATA}),
        kinds=("lora", "dora"),
        writes=("lora", "dora"),
        files="`pytorch_lora_weights.safetensors` or `.bin`: attention processors (2023), `lora.down`/`lora.up`, "
        "PEFT style with or without `lora_adapter_metadata`",
        folder_files=(WEIGHTS_NAME,),
    ),
)
