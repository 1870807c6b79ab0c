"""PEFT: ``adapter_config.json`` beside ``base_model.model.<site>.lora_A.weight`` and ``.lora_B.weight``.

    ΔW = scale · B · A;   scale = alpha/r, or alpha/√r (rsLoRA), per site by patterns
    A convolution is stored in its own shapes; an embedding as lora_embedding_A [r, count], lora_embedding_B [dim, r].

Variants of LoRA have more tensors or other shapes: a bias of B, a magnitude (DoRA), a diagonal (KaSA), blocks
(block-diagonal LoRA, convolutions in groups), experts (``target_parameters``). Other types are in ``peft_types``.

Source: https://github.com/huggingface/peft, src/peft/tuners/lora/layer.py, src/peft/tuners/lora/variants.py and
src/peft/utils/save_and_load.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lorascope.adapter import Adapter, Note, Provenance, Update
from lorascope.adapter.site import expert_of, path_and_part
from lorascope.errors import AdapterError
from lorascope.formats.config_file import flag, mapping, positive_integer, text_or_none
from lorascope.formats.contents import Contents
from lorascope.formats.notes import assumed_scale_note, leftover_notes
from lorascope.formats.pairs import Scale
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.parametrisations._options import names
from lorascope.formats.parametrisations.bdlora import BLOCKS_OF_A
from lorascope.formats.peft_experts import LEVEL, FusedParameters
from lorascope.formats.peft_folder import peft_kinds, peft_refusals, write_peft
from lorascope.formats.peft_keys import PREFIX, is_factor, site_keys
from lorascope.formats.peft_scale import PEFT_ALPHA, PeftScale
from lorascope.formats.peft_types import TYPED_KINDS, TYPES, read_typed
from lorascope.formats.registry import PLAIN, STATED, WEAK, Evidence, Format

_HARMLESS = frozenset({"monteclora_config", "velora_config", "megatron_config"})  # the update is what it says
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
    pairs = [key for key in contents.tensors if is_factor(key)]
    if not pairs:
        return None
    if any(key.startswith(PREFIX) for key in pairs):
        return Evidence(PLAIN, f"keys begin {PREFIX}")
    return Evidence(WEAK, "keys end lora_A.weight")


def read_peft(contents: Contents) -> Adapter:
    """The adapter of a PEFT file.

    Raises:
        AdapterError: where the type is not known, a site's tensors do not fit together, or the file and the
            configuration disagree.
    """
    config = contents.config
    if (name := _type_name(config)) in TYPES:
        return read_typed(contents, config or {}, name)
    _check_type(config or {})
    notes = _config_notes(config)
    rule = None if config is None else PeftScale.of(config)
    fused = None if rule is None or config is None else FusedParameters.of(config, rule)
    found, leftover_keys = site_keys(contents.tensors)

    plain: list[Parts] = []
    modules: dict[str, dict[str, Parts]] = {}
    assumed: list[str] = []
    for site, one in found.items():
        parts = Parts(
            site,
            {role: contents.tensors[key] for role, key in one.keys.items()},
            one.keys,
            _scale_of(rule, site, assumed),
            one.layer,
            is_transposed=config is not None and flag(config, "fan_in_fan_out"),
        )
        module = None
        if fused is not None and one.layer != "embedding":
            module = fused.module_of(site, parts.tensors["A"].shape[0] if parts.tensors["A"].ndim else 0)
        if module is not None:
            modules.setdefault(module, {})[site] = parts
        elif site.endswith(LEVEL):
            raise AdapterError(
                "the keys are those of several fused parameters, whose names only target_parameters tells",
                key=site,
                expected="target_parameters in adapter_config.json",
                found="no configuration" if config is None else "none there",
            )
        else:
            plain.append(parts)
    if fused is not None:
        plain += [parts for module, levels in modules.items() for parts in fused.expanded(module, levels)]
        notes += fused.notes()
    kinds = {parts.site: _kind(parts, config or {}) for parts in plain}
    sites: dict[str, Update] = {}
    for parts in plain:
        if parts.site in sites:
            raise AdapterError("two tensors are one site", key=parts.site)
        update = built(kinds[parts.site], _with_blocks(parts, kinds[parts.site], config or {}))
        sites[parts.site] = update if fused is None else fused.marked(parts.site, update)
    if config is None:
        notes = [replace(note, sites=tuple(sites)) if note.code == "config-missing" else note for note in notes]
    elif assumed:
        named = [site for site in sites if path_and_part(site)[0] in assumed]
        notes.append(
            assumed_scale_note(
                named or assumed, f"the configuration states no lora_alpha: PEFT's default {PEFT_ALPHA:g}"
            )
        )
    notes += _group_notes(sites)
    leftovers = {key: contents.tensors[key] for key in leftover_keys}
    notes += leftover_notes(leftovers, config or {})
    return Adapter(
        sites=sites,
        provenance=Provenance(
            format="peft",
            kind="+".join(sorted(set(kinds.values()) - {"lora"})) or "lora",
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


def _scale_of(rule: PeftScale | None, site: str, assumed: list[str]) -> Callable[[int], Scale]:
    def scale_of(rank: int) -> Scale:
        scale = Scale(1.0, None, is_assumed=True) if rule is None else rule(site, rank)
        if scale.is_assumed:
            assumed.append(site)
        return scale

    return scale_of


def _kind(parts: Parts, config: Mapping[str, Any]) -> str:
    """The parametrisation of one site, told by its tensors and by what the configuration promises."""
    A, B = parts.tensors["A"], parts.tensors["B"]
    is_matrix = parts.layer == "linear" and A.ndim == 2
    if "bias" in parts:
        parts.tensor("bias", None)
        if "magnitude" in parts or parts.layer == "embedding":
            raise AdapterError("a bias where PEFT has none", key=parts.site, found=", ".join(parts.tensors))
    if "diag" in parts or (is_matrix and config.get("kasa_config")):
        if "magnitude" in parts:
            raise AdapterError("a site is both DoRA and KaSA", key=parts.site, found=", ".join(parts.tensors))
        return "kasa"
    if "magnitude" in parts or (flag(config, "use_dora") and expert_of(parts.site) is None):
        return "dora"
    is_grouped = A.ndim > 2 and B.ndim == A.ndim and 0 < B.shape[1] < A.shape[0] and A.shape[0] % B.shape[1] == 0
    is_in_blocks = is_matrix and any(_is_in_blocks(parts.site, config, half) for half in "ab")
    return "bdlora" if is_grouped or is_in_blocks else "lora"


def _is_in_blocks(site: str, config: Mapping[str, Any], half: str) -> bool:
    """Whether block-diagonal LoRA names the site: PEFT takes each entry as a part of the module's name."""
    listed = names(mapping(config, "use_bdlora"), f"target_modules_bd_{half}")
    return any(name in site for name in listed or [])


def _with_blocks(parts: Parts, kind: str, config: Mapping[str, Any]) -> Parts:
    if kind != "bdlora" or parts.tensors["A"].ndim > 2 or not _is_in_blocks(parts.site, config, "a"):
        return parts
    blocks = positive_integer(mapping(config, "use_bdlora"), "nblocks", 1)
    return replace(parts, options={BLOCKS_OF_A: blocks})


def _group_notes(sites: Mapping[str, Update]) -> list[Note]:
    grouped = [site for site, update in sites.items() if update.kind == "bdlora" and update.kernel]
    if not grouped:
        return []
    where = f"{len(grouped)} sites" if len(grouped) > 1 else grouped[0]
    return [
        Note(
            "grouped-convolution",
            f"convolution in groups at {where}: ΔW is that of the convolution without groups, since PEFT lets every "
            "output see all channels; the weight that the base stores cannot take it up",
            grouped[0] if len(grouped) == 1 else None,
            is_doubt=True,
        )
    ]


def _config_notes(config: Mapping[str, Any] | None) -> list[Note]:
    if config is None:
        return [
            Note(
                "config-missing",
                "config missing: scale unknown, taken as 1 (alpha/r is stated only in adapter_config.json)",
                is_doubt=True,
            )
        ]
    notes = [
        Note("config-variant", f"{key}: {text}", is_doubt=key not in _HARMLESS)
        for key, text in _REPORTED_FIELDS.items()
        if config.get(key)
    ]
    if _is_mutating(config):
        notes.append(
            Note(
                "mutated-base",
                f"initialised by {config['init_lora_weights']}, which changed the base weights: "
                "ΔW is not relative to the published base model",
                is_doubt=True,
            )
        )
    return notes


def _is_mutating(config: Mapping[str, Any]) -> bool:
    init = config.get("init_lora_weights")
    return isinstance(init, str) and init.lower().startswith(_MUTATING_INITS)


def _type_name(config: Mapping[str, Any] | None) -> str:
    peft_type = (config or {}).get("peft_type")
    return peft_type.upper() if isinstance(peft_type, str) else ascii(peft_type)


def _check_type(config: Mapping[str, Any]) -> None:
    name = _type_name(config)
    if name in _KNOWN_TYPES:
        raise AdapterError(f"{name} is recognised, but not read by this version", key="peft_type")
    if name != "LORA" and "peft_type" in config:
        raise AdapterError(
            f"unsupported peft_type {name[:80]}",
            key="peft_type",
            expected=f"one of {', '.join(['LORA', *TYPES])}",
        )


FORMATS = (
    Format(
        name="peft",
        title="PEFT",
        reference="https://github.com/huggingface/peft",
        recognise=recognise_peft,
        read=read_peft,
        write=write_peft,
        refusals=peft_refusals,
        kept=peft_kinds,
        is_folder=True,
        folder_files=("adapter_model.safetensors", "adapter_config.json"),
        base_field="base_model_name_or_path",
        kinds=("lora", "dora", "kasa", "bdlora", *TYPED_KINDS),
        writes=("lora", "dora", "adalora", "ia3", "loha", "lokr", "vera"),
        files="a folder with `adapter_config.json` and `adapter_model.safetensors` or `.bin`",
    ),
)
