"""Names of kohya files and the module paths that they stand for.

    lora_unet_down_blocks_0_attentions_1_proj_in  →  unet.down_blocks.0.attentions.1.proj_in
    <prefix><path with _ for .>                   →  <component>.<path>

The dots are lost in the file, so a name is undone only where it is that of a known layer (``kohya_vocabulary``) and
flattening the result gives the name back; other names stay as they are. The names of the LDM U-Net, which SDXL files
have, become those of diffusers' U-Net. ``lora_unet_`` means ``unet.`` for the layers of a U-Net, and ``transformer.``
for those of a diffusion transformer. Where two models have layers of one flat name, the model wins that more names of
the file belong to, then the one listed first.

Files that lorascope writes list their sites in the metadata under ``lorascope.sites``; a site is taken from there only
where it flattens to its very name.

Source: https://github.com/kohya-ss/sd-scripts, networks/lora.py, lora_flux.py, lora_sd3.py;
https://github.com/huggingface/diffusers, src/diffusers/loaders/lora_conversion_utils.py.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, cast

from lorascope.errors import AdapterError
from lorascope.formats.kohya_vocabulary import DENOISERS, TEXT_ENCODERS, diffusers_path, expanded

SITES_KEY = "lorascope.sites"
"""The metadata key under which written files list flat name → site, as JSON."""

MAX_SITES_TEXT = 1 << 24
"""Characters of that list that are looked at."""

_PREFIXES: Mapping[str, str] = {
    "lora_unet_": "",
    "oft_unet_": "",
    "lycoris_": "",
    "lora_transformer_": "transformer",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
"""Prefix → component; empty where the layer's name tells it."""

_WRITTEN: Mapping[str, str] = {
    "unet": "lora_unet_",
    "transformer": "lora_unet_",
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
    "text_encoder_3": "lora_te3_",
}

_OF_LARGER_MODELS = re.compile(r"transformer\.|text_encoder_[23]\.|unet\.(add_embedding|.*\.transformer_blocks\.[1-9])")
"""Sites that SD 1 and SD 2 have not."""


def flattened(site: str, *, text_encoder: str = "lora_te1_") -> str:
    """The kohya name of a site; names of kohya files stay, and a name without component is taken for the denoiser's.

    Args:
        site: a module path with its component.
        text_encoder: the prefix of the first text encoder; ``lora_te_`` where it is the only one.

    >>> flattened("text_encoder_2.text_model.encoder.layers.0.mlp.fc1"), flattened("q")
    ('lora_te2_text_model_encoder_layers_0_mlp_fc1', 'lora_unet_q')

    Raises:
        AdapterError: where the site is a part of a fused weight or one of several experts.
    """
    if site.endswith("]"):
        raise AdapterError("kohya files have no names for a part of a weight", key=site)
    if _is_flat(site):
        return site
    component, dot, rest = site.partition(".")
    prefix = _WRITTEN.get(component) if dot else None
    if component == "text_encoder" and prefix:
        prefix = text_encoder
    if component == "transformer" and "transformer_blocks" in rest:
        prefix = "lora_transformer_"  # the layers of diffusers, as its readers expect them
    return (prefix + rest if prefix else f"lora_unet_{site}").replace(".", "_")


def _is_flat(site: str) -> bool:
    return "." not in site and site.startswith(tuple(_PREFIXES))


def sites_of(names: Iterable[str], metadata: Mapping[str, str]) -> dict[str, str]:
    """Flat name → site for the names of one file; a name that cannot be undone is its own site.

    >>> sites_of(["lora_unet_single_blocks_3_linear1", "lora_te_text_projection", "lora_unet_x_y"], {})
    {'lora_unet_single_blocks_3_linear1': 'transformer.single_blocks.3.linear1', \
'lora_te_text_projection': 'text_encoder.text_projection', 'lora_unet_x_y': 'lora_unet_x_y'}
    """
    names = list(dict.fromkeys(names))
    candidates = {name: _candidates(name) for name in names}
    votes = Counter(family for found in candidates.values() for family in found)
    listed = _listed_sites(metadata)
    sites: dict[str, str] = {}
    for name in names:
        found = candidates[name]
        best = max(found, key=lambda family: votes[family], default=None)  # of equals the first
        sites[name] = listed.get(name) or (name if best is None else found[best])
    taken = Counter(sites.values())
    return {name: site if taken[site] == 1 else name for name, site in sites.items()}


def _candidates(name: str) -> dict[str, str]:
    """Family → site, for the families that have a layer of this flat name."""
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
    if prefix is None:
        return {}
    component, rest = _PREFIXES[prefix], name[len(prefix) :]
    found: dict[str, str] = {}
    if component.startswith("text_encoder"):
        families: dict[str, str] = dict.fromkeys(TEXT_ENCODERS, component)
    else:
        families = {family: component or own for family, (_, own) in DENOISERS.items() if component in ("", own)}
    for family, of in families.items():
        path = unflattened(rest, family)
        if path is not None and family == "ldm":
            path = diffusers_path(path)
        if path is not None:
            found[family] = f"{of}.{path}"
    return found


def unflattened(name: str, family: str) -> str | None:
    """The module path of a family whose dots became underscores, or None; the law: flattening it gives ``name``.

    >>> unflattened("double_blocks_12_img_attn_qkv", "flux"), unflattened("double_blocks_x", "flux")
    ('double_blocks.12.img_attn.qkv', None)
    """
    words = name.split("_")
    shape = "_".join("#" if _is_number(word) else word for word in words)
    paths = {path for template in _templates(family).get(shape, ()) if (path := _filled(template, words))}
    return paths.pop() if len(paths) == 1 else None


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal()


@cache
def _templates(family: str) -> Mapping[str, tuple[str, ...]]:
    """Flat name with # for every number → the templates that have it."""
    given = TEXT_ENCODERS[family] if family in TEXT_ENCODERS else DENOISERS[family][0]
    found: dict[str, tuple[str, ...]] = {}
    for template in (path for one in given for path in expanded(one)):
        shape = "_".join("#" if _is_number(word) else word for word in re.split(r"[._]", template))
        found[shape] = (*found.get(shape, ()), template)
    return found


def _filled(template: str, words: list[str]) -> str | None:
    parts = re.split(r"([._])", template)  # words and the separators between them
    for place, word in enumerate(words):
        expected = parts[2 * place]
        if expected == "#":
            parts[2 * place] = word
        elif expected != word:
            return None
    return "".join(parts)


def _listed_sites(metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries of ``lorascope.sites`` that flatten to their own names; all others are ignored."""
    text = metadata.get(SITES_KEY)
    if text is None or len(text) > MAX_SITES_TEXT:
        return {}
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {
        name: site
        for name, site in cast("dict[str, Any]", value).items()
        if isinstance(site, str) and site and _flattens_to(site, name)
    }


def _flattens_to(site: str, name: str) -> bool:
    return not site.endswith("]") and name in (flattened(site), flattened(site, text_encoder="lora_te_"))


def names_of(sites: Iterable[str]) -> dict[str, str]:
    """Site → kohya name for the sites of one adapter.

    The first text encoder is ``lora_te_`` with the U-Net of SD 1 and SD 2, as their readers know it, or ``lora_te1_``.

    Raises:
        AdapterError: where two sites have one name without dots, or a site has none.

    >>> names_of(["unet.conv_in", "text_encoder.text_projection"])
    {'unet.conv_in': 'lora_unet_conv_in', 'text_encoder.text_projection': 'lora_te_text_projection'}
    """
    sites = list(sites)
    is_alone = not any(_OF_LARGER_MODELS.match(site) for site in sites)
    names = {site: flattened(site, text_encoder="lora_te_" if is_alone else "lora_te1_") for site in sites}
    owner: dict[str, str] = {}
    for site, name in names.items():
        if name in owner:
            raise AdapterError("two sites have one name without dots", key=site, found=f"{name} of {owner[name]}")
        owner[name] = site
    return names


def listed(sites: Mapping[str, str]) -> str:
    """The metadata text for flat name → site."""
    return json.dumps(dict(sites), ensure_ascii=False, separators=(",", ":"))
