"""The formats that are written, and adapters that two of them have a place for."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from lorascope import formats
from lorascope.adapter import Adapter, Provenance, Update
from lorascope.formats import Format

HAS_TORCH = importlib.util.find_spec("torch") is not None
WRITTEN = {
    member.name: member
    for member in formats.formats()
    if "lora" in member.writes and (HAS_TORCH or member.suffix != ".pt")
    if member.name != "sam-lora"  # the names of its sites are those of their rows, so that shapes cannot be drawn
}
BASE = {"model_type": "qwen2"}
"""What is said of the base model; formats that do not ask for it pass over it."""

_NAMES = [f"text_model.encoder.layers.{layer}.self_attn.{end}" for layer in (0, 11) for end in ("q_proj", "v_proj")]


def names_for(*members: Format) -> list[str]:
    """Names of sites that all of the formats have a place for."""
    limited = [set(member.site_examples) for member in members if member.site_examples]
    return sorted(set.intersection(*limited)) if limited else _NAMES


PAIRS = [(one, two) for one in WRITTEN for two in WRITTEN if one != two and names_for(WRITTEN[one], WRITTEN[two])]
"""Two formats that have a name of a site in common."""


def lost_between(one: Format, two: Format) -> set[str]:
    """What a conversion loses of sites of ``names_for``: a format that finds layers by names has none for numbers."""
    return {"names of layers"} if one.is_numbered and not two.is_numbered else set()


def adapter_of(sites: Mapping[str, Update]) -> Adapter:
    """An adapter whose base model is known."""
    return Adapter(sites, Provenance(base_config=BASE))


def target_in(folder: str | Path, member: Format, name: str) -> Path:
    """Where ``member`` writes to."""
    return Path(folder) / (name if member.is_folder else name + member.suffix)
