"""PEFT LoRA: ``adapter_config.json`` beside ``base_model.model.<site>.lora_A.weight`` and ``.lora_B.weight``.

    ΔW = scale · B · A;   scale = alpha/r, or alpha/√r (rsLoRA), per site by patterns
    A convolution is stored in its own shapes; an embedding as lora_embedding_A [r, count], lora_embedding_B [dim, r].

Source: https://github.com/huggingface/peft, src/peft/tuners/lora/layer.py and src/peft/utils/save_and_load.py.
Variants that are no plain low-rank change (DoRA, expert tensors, block-diagonal, KaSA) are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lorascope.adapter import Adapter, LowRank, Note, Provenance
from lorascope.errors import AdapterError
from lorascope.formats.config_file import flag, text_or_none
from lorascope.formats.contents import Contents
from lorascope.formats.notes import assumed_scale_note, leftover_notes
from lorascope.formats.pairs import Halves, Scale, low_rank
from lorascope.formats.peft_folder import PREFIX, write_peft
from lorascope.formats.peft_scale import PEFT_ALPHA, PeftScale
from lorascope.formats.peft_types import TYPES, read_typed
from lorascope.formats.registry import PLAIN, STATED, WEAK, Evidence, Format

_FACTOR = re.compile(r"(?P<site>.+)\.lora_(?P<half>[AB])(?:\.(?P<name>[^.]+))?\.weight", re.DOTALL)
_EMBEDDING = re.compile(r"(?P<site>.+)\.lora_embedding_(?P<half>[AB])(?:\.(?P<name>[^.]+))?", re.DOTALL)
_KNOWN_TYPES = frozenset(
    """
    ADALORA ADAMSS ADAPTION_PROMPT BEFT BOFT BONE C3A CARTRIDGE CPT DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA
    IA3 LILY LN_TUNING LOHA LOKR MISS MULTITASK_PROMPT_TUNING OFT OSF PEANUT POLY PREFIX_TUNING PROMPT_TUNING PSOFT
    PVERA P_TUNING RANDLORA ROAD SHADOW SHIRA TINYLORA TRAINABLE_TOKENS UNILORA VBLORA VERA WAVEFT XLORA
    """.split()  # noqa: SIM905 (a list of fifty quoted names is harder to read)
)
_MUTATING_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")
_REPORTED_FIELDS: Mapping[str, str] = {
    "alora_invocation_tokens": "activated LoRA: it acts only after its invocation tokens",
    "arrow_config": "one of several adapters behind a router (Arrow)",
    "layer_replication": "layer numbers are those of the model with replicated layers",
    "megatron_config": "made for Megatron's parallel layers",
    "use_qalora": "QA-LoRA: on a quantised base A sees pooled inputs; shapes are those of the file",
    "monteclora_config": "trained with MonteCLoRA",
    "velora_config": "trained with VeLoRA",
}


def recognise_peft(contents: Contents) -> Evidence | None:
    """The configuration decides where there is one; else the keys, which diffusers shares without the prefix."""
    config = contents.config
    if config is not None and "peft_type" in config:
        return Evidence(STATED, "adapter_config.json states a peft_type")
    pairs = [key for key in contents.tensors if _FACTOR.fullmatch(key) or _EMBEDDING.fullmatch(key)]
    if not pairs:
        return None
    if any(key.startswith(PREFIX) for key in pairs):
        return Evidence(PLAIN, f"keys begin {PREFIX}")
    return Evidence(WEAK, "keys end lora_A.weight")


def read_peft(contents: Contents) -> Adapter:
    """The adapter of a PEFT file.

    Raises:
        AdapterError: where the type is not LORA, a variant is not plain LoRA, a pair is broken, or the file and
            the configuration disagree.
    """
    config = contents.config
    if (name := _type_name(config)) in TYPES:
        return read_typed(contents, config or {}, name)
    notes = _config_notes(config)
    _check_variant(config or {}, contents)
    rule = None if config is None else PeftScale.of(config)
    is_transposed = config is not None and flag(config, "fan_in_fan_out")

    linear, embedded, leftover_keys = _parsed(contents)
    sites: dict[str, LowRank] = {}
    assumed: list[str] = []
    for halves, is_embedding in ((linear, False), (embedded, True)):
        for site, keys in halves.checked().items():
            scale_of = _scale_of(rule, site, assumed)
            if site in sites:
                raise AdapterError("a site is both a linear layer and an embedding", key=site)
            sites[site] = low_rank(
                site,
                contents.tensors,
                keys,
                scale_of,
                is_embedding=is_embedding,
                is_transposed=is_transposed,
            )
    if assumed and config is not None:
        notes.append(
            assumed_scale_note(assumed, f"the configuration states no lora_alpha: PEFT's default {PEFT_ALPHA:g}")
        )
    leftovers = {key: contents.tensors[key] for key in leftover_keys}
    notes += leftover_notes(leftovers, config or {})
    return Adapter(
        sites=sites,
        provenance=Provenance(
            format="peft",
            kind="lora",
            path=contents.path,
            base_model=text_or_none(config or {}, "base_model_name_or_path"),
            config=config or {},
            config_text=contents.config_text,
            metadata=contents.metadata,
            is_relative_to_base=not _is_mutating(config or {}),
        ),
        leftovers=leftovers,
        notes=tuple(notes),
    )


def _scale_of(rule: PeftScale | None, site: str, assumed: list[str]) -> Any:
    def scale_of(rank: int) -> Scale:
        scale = Scale(1.0, None, is_assumed=True) if rule is None else rule(site, rank)
        if scale.is_assumed:
            assumed.append(site)
        return scale

    return scale_of


def _parsed(contents: Contents) -> tuple[Halves, Halves, list[str]]:
    linear, embedded, leftovers = Halves(), Halves(), list[str]()
    names: set[str | None] = set()
    for key in contents.tensors:
        for halves, pattern in ((linear, _FACTOR), (embedded, _EMBEDDING)):
            if match := pattern.fullmatch(key):
                names.add(match["name"])
                halves.add(match["site"].removeprefix(PREFIX), "A" if match["half"] == "A" else "B", key)
                break
        else:
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
            found=f"{len(contents.tensors)} other tensors" if contents.tensors else "no tensors",
        )
    return linear, embedded, leftovers


def _config_notes(config: Mapping[str, Any] | None) -> list[Note]:
    if config is None:
        return [
            Note(
                "config-missing",
                "config missing: scale unknown, taken as 1 (alpha/r is stated only in adapter_config.json)",
            )
        ]
    notes = [Note("config-variant", f"{key}: {text}") for key, text in _REPORTED_FIELDS.items() if config.get(key)]
    if _is_mutating(config):
        notes.append(
            Note(
                "mutated-base",
                f"initialised by {config['init_lora_weights']}, which changed the base weights: "
                "ΔW is not relative to the published base model",
            )
        )
    return notes


def _is_mutating(config: Mapping[str, Any]) -> bool:
    init = config.get("init_lora_weights")
    return isinstance(init, str) and init.lower().startswith(_MUTATING_INITS)


def _type_name(config: Mapping[str, Any] | None) -> str:
    peft_type = (config or {}).get("peft_type")
    return peft_type.upper() if isinstance(peft_type, str) else ascii(peft_type)


def _check_variant(config: Mapping[str, Any], contents: Contents) -> None:
    if config:
        name = _type_name(config)
        if name in _KNOWN_TYPES:
            raise AdapterError(f"peft_type {name} is recognised, but not read by this version", key="peft_type")
        if name != "LORA" and "peft_type" in config:
            raise AdapterError(f"unsupported peft_type {name[:80]}", key="peft_type", expected="LORA")
    if flag(config, "use_dora") or any("lora_magnitude_vector" in key for key in contents.tensors):
        raise AdapterError(
            "DoRA (a magnitude beside the low-rank part) is recognised, but not read by this version",
            key="use_dora",
        )
    for key, what in (
        ("target_parameters", "LoRA on fused parameters such as experts"),
        ("use_bdlora", "block-diagonal LoRA"),
        ("kasa_config", "KaSA, which truncates the base weights,"),
    ):
        if config.get(key):
            raise AdapterError(f"{what} is recognised, but not read by this version", key=key)


FORMATS = (
    Format(
        name="peft",
        title="PEFT LoRA",
        reference="https://github.com/huggingface/peft",
        recognise=recognise_peft,
        read=read_peft,
        write=write_peft,
        writes=("lora",),
    ),
)
