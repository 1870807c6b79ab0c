"""Notes that several grammars make: what was assumed, and what was left over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from lorascope.adapter import Note
from lorascope.formats.config_file import repeated_fields


def assumed_scale_note(sites: Sequence[str], why: str, *, is_unknown: bool = False, is_decided: bool = False) -> Note:
    """The note that the scale of some sites is not in the file.

    Args:
        sites: the sites.
        why: what was taken instead.
        is_unknown: whether what was taken is a guess, and not what all programs take in such a file.
        is_decided: whether the format has no other scale, so that none was taken for granted.
    """
    where = f"{len(sites)} sites" if len(sites) > 1 else sites[0]
    code, word = ("scale-unknown", "unknown") if is_unknown else ("scale-assumed", "assumed")
    site = sites[0] if len(sites) == 1 else None
    return Note(code, f"scale {word} at {where}: {why}", site, tuple(sites), is_doubt=is_unknown, is_decided=is_decided)


DECIDING = frozenset(
    """
    r lora_alpha alpha rank_pattern alpha_pattern use_rslora init_r randlora_alpha scaling lora_parameters peft_type
    fine_tune_type use_dora fan_in_fan_out init_lora_weights target_parameters
    """.split()  # noqa: SIM905 (a column of sixteen quoted names is harder to read)
)
"""Fields of a configuration that decide what the tensors mean, scales above all."""


def repeated_notes(text: str | None, where: str = "the configuration") -> list[Note]:
    """The note that fields stand more than once in JSON, where the last one was taken.

    It is a doubt where the values differ and decide what the tensors mean.

    Args:
        text: the JSON, None for none.
        where: what it is the text of.

    >>> [(note.text, note.is_doubt) for note in repeated_notes('{"r": 8, "r": 16}')]
    [('the configuration states r more than once, with unlike values: the last was taken', True)]
    """
    fields = {} if text is None else repeated_fields(text)
    if not fields:
        return []
    unlike = [name for name, differ in fields.items() if differ]
    parts = {part for name in unlike for part in name.split(".")}  # a component may stand before the field
    values = "with unlike values: the last was taken" if unlike else "always with the same value"
    said = f"{where} states {_listed(unlike or list(fields))} more than once, {values}"
    return [Note("repeated-fields", said, is_doubt=not parts.isdisjoint(DECIDING))]


def leftover_notes(keys: Iterable[str], config: Mapping[str, Any], *, has_whole_layers: bool = False) -> list[Note]:
    """One note for each kind of tensor that belongs to no site.

    Args:
        keys: their names.
        config: the configuration, which may say which modules were saved whole.
        has_whole_layers: whether the trainer saves everything that was trained under the model's own names.

    >>> [note.code for note in leftover_notes(["score.weight", "x"], {"modules_to_save": ["score"]})]
    ['saved-modules', 'unknown-keys']
    """
    saved = config.get("modules_to_save")
    modules = (
        {name for name in cast("list[Any]", saved) if isinstance(name, str)} if isinstance(saved, list) else set[str]()
    )
    has_biases = config.get("bias") in ("all", "lora_only")
    kinds: dict[str, list[str]] = {}
    for key in keys:
        path = key.split(".")
        if ".lora_B." in key and key.endswith(".bias"):
            code = "lora-bias"
        elif modules.intersection(path) or "modules_to_save" in path:
            code = "saved-modules"
        elif "trainable_tokens" in key:
            code = "saved-tokens"
        elif path[-1] == "bias" and (has_biases or path[-2:-1] == ["base_layer"]):
            code = "saved-biases"
        elif (
            (has_whole_layers and path[-1] in ("weight", "bias"))
            or path[-2:-1] == ["base_layer"]
            or path[-2:] in (["lm_head", "weight"], ["embed_tokens", "weight"])
        ):
            code = "saved-layers"
        else:
            code = "unknown-keys"
        kinds.setdefault(code, []).append(key)
    return [Note(code, f"{_TEXTS[code]}: {_listed(names)}") for code, names in kinds.items()]


_TEXTS = {
    "lora-bias": "each layer's bias changes too, by scale · bias; this is kept but is no part of ΔW",
    "saved-modules": "modules saved whole beside the LoRA, kept untouched",
    "saved-tokens": "trained token rows, kept untouched",
    "saved-biases": "biases of base layers, kept untouched",
    "saved-layers": "base layers saved whole, kept untouched",
    "unknown-keys": "tensors that belong to no site, kept untouched",
}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:120] for name in names[:3]) + more
