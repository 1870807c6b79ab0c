"""The keys of a PEFT LoRA file: which tensor has which role at which site.

    base_model.model.<site>.lora_A[.<adapter>].weight   .lora_B….weight   .lora_B….bias      linear, convolution
    base_model.model.<site>.lora_embedding_A            .lora_embedding_B                    embedding
    base_model.model.<site>.lora_magnitude_vector[.weight]                                   DoRA
    base_model.model.<site>.lora_diag                                                        KaSA

The name of the adapter is mostly taken out on saving. Source: https://github.com/huggingface/peft,
src/peft/utils/save_and_load.py, src/peft/tuners/lora/model.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lorascope.adapter import Layer
from lorascope.errors import AdapterError
from lorascope.formats.contents import Tensors
from lorascope.formats.pairs import Halves

PREFIX = "base_model.model."

_NAME = r"(?:\.(?P<name>(?!weight$|bias$)[^.]+))?"
_FACTOR = re.compile(rf"(?P<site>.+)\.lora_(?P<half>[AB]){_NAME}\.weight", re.DOTALL)
_EMBEDDING = re.compile(rf"(?P<site>.+)\.lora_embedding_(?P<half>[AB]){_NAME}", re.DOTALL)
_EXTRAS: Mapping[str, re.Pattern[str]] = {
    "bias": re.compile(rf"(?P<site>.+)\.lora_B{_NAME}\.bias", re.DOTALL),
    "magnitude": re.compile(rf"(?P<site>.+)\.lora_magnitude_vector{_NAME}(?:\.weight)?", re.DOTALL),
    "diag": re.compile(rf"(?P<site>.+)\.lora_diag{_NAME}", re.DOTALL),
}


def is_factor(key: str) -> bool:
    """Whether the key is that of a factor of a site.

    >>> is_factor("base_model.model.q.lora_A.weight"), is_factor("q.lora_A"), is_factor("wte.lora_embedding_A")
    (True, False, True)
    """
    return _FACTOR.fullmatch(key) is not None or _EMBEDDING.fullmatch(key) is not None


@dataclass(frozen=True)
class SiteKeys:
    """One site: what its layer is, and role → key of the tensor."""

    layer: Layer
    keys: Mapping[str, str]


def site_keys(tensors: Tensors) -> tuple[dict[str, SiteKeys], list[str]]:
    """Site → its keys, and the keys that belong to no site, both in the order of the file.

    Raises:
        AdapterError: where a factor or the pair of another tensor is missing, or there are several adapters or none.
    """
    linear, embedded = Halves(), Halves()
    extras: dict[str, dict[str, str]] = {}
    leftovers: list[str] = []
    names: set[str | None] = set()
    for key in tensors:
        for halves, pattern in ((linear, _FACTOR), (embedded, _EMBEDDING)):
            if match := pattern.fullmatch(key):
                names.add(match["name"])
                halves.add(match["site"].removeprefix(PREFIX), "A" if match["half"] == "A" else "B", key)
                break
        else:
            if not _add_extra(extras, key):
                leftovers.append(key)
    if len(names) > 1:
        raise AdapterError(
            "the file holds several adapters",
            expected="one adapter name in the keys",
            found=", ".join(sorted(str(name) for name in names)),
        )
    if not linear and not embedded:
        raise AdapterError(
            "no LoRA tensors, although the configuration says LORA",
            expected="keys that end lora_A.weight and lora_B.weight",
            found=f"{len(tensors)} other tensors" if tensors else "no tensors",
        )
    sites: dict[str, SiteKeys] = {}
    layers: tuple[tuple[Halves, Layer], ...] = ((linear, "linear"), (embedded, "embedding"))
    for halves, layer in layers:
        for site, (up, down) in halves.checked().items():
            if site in sites:
                raise AdapterError("a site is both a linear layer and an embedding", key=site)
            sites[site] = SiteKeys(layer, {"B": up, "A": down, **extras.pop(site, {})})
    for site, keys in extras.items():
        role, key = next(iter(keys.items()))
        raise AdapterError(f"{key} has no factors beside it", key=site, expected="A and B", found=f"only the {role}")
    return sites, leftovers


def _add_extra(extras: dict[str, dict[str, str]], key: str) -> bool:
    for role, pattern in _EXTRAS.items():
        if match := pattern.fullmatch(key):
            keys = extras.setdefault(match["site"].removeprefix(PREFIX), {})
            if role in keys:
                raise AdapterError(
                    f"two tensors are the {role} of one site", key=match["site"], found=f"{keys[role]} and {key}"
                )
            keys[role] = key
            return True
    return False
