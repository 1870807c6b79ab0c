"""What a checkpoint tells of the layout of its weights: the model types in its config.json, and its biases.

    {"model_type": "gpt2"}                                      every c_attn, c_fc, c_proj is a Conv1D, [in, out]
    {"model_type": "vision-encoder-decoder", "decoder": {"model_type": "gpt2"}}       the same, inside a larger model
    h.0.attn.c_attn.weight [64, 192], h.0.attn.c_attn.bias [192]                      the same, without config.json

A bias is as long as the output, so that a weight that is not square tells by its bias how it is stored. Layers of one
name are stored alike in one model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from lorascope.adapter.layout import CONV1D_LAYERS, CONV1D_MODELS, EITHER_EXPERTS, FLAGGED_EXPERTS, UNFLAGGED_EXPERTS
from lorascope.formats.config_file import read_config, text_or_none

HEADS = frozenset({"lm_head", "embed_out"})
"""What models call the head that their embedding may be too."""

_MAX_CONFIG = 16 << 20  # bytes: the names of tens of thousands of classes are in it
_DEPTH = 4  # levels of config.json that hold models: a model, its parts, their parts


@dataclass(frozen=True)
class BaseFacts:
    """What a config.json says of a model and its parts.

    Args:
        types: every ``model_type`` in it.
        is_head_tied: whether the head of it or of a part is the embedding, None where it does not say so.
    """

    types: frozenset[str] = frozenset()
    is_head_tied: bool | None = None


def base_facts(config: Path) -> BaseFacts:
    """The facts in a config.json, none where there is no such file.

    Raises:
        AdapterError: where the file is too large, or no JSON object.
    """
    if not config.is_file():
        return BaseFacts()
    value, _ = read_config(config, limit=_MAX_CONFIG)
    models = list(_models_in(value, _DEPTH))
    types = frozenset(name for model in models if (name := text_or_none(model, "model_type")) is not None)
    ties = [tie for model in models if isinstance(tie := model.get("tie_word_embeddings"), bool)]
    return BaseFacts(types, any(ties) if ties else None)


def _models_in(config: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    yield config
    for part in config.values():
        if depth and isinstance(part, dict):
            yield from _models_in(cast("dict[str, Any]", part), depth - 1)


def conv1d_by_biases(tensors: Mapping[str, NDArray[Any]]) -> bool | None:
    """Whether layers that GPT-2 has as Conv1D are stored as [in, out], as the biases beside them tell."""
    found: set[bool] = set()
    for name, weight in tensors.items():
        path, _, ending = name.rpartition(".")
        if ending != "weight" or path.rpartition(".")[2] not in CONV1D_LAYERS or weight.ndim != 2:
            continue
        bias = tensors.get(f"{path}.bias")
        if (
            bias is not None
            and weight.shape[0] != weight.shape[1]
            and bias.shape in (weight.shape[:1], weight.shape[1:])
        ):
            found.add(bias.shape == weight.shape[1:])
    return found.pop() if len(found) == 1 else None


def is_conv1d_stored_in_out(types: frozenset[str], by_biases: bool | None) -> bool | None:
    """How a model of these types stores the layers that GPT-2 has as Conv1D; None where that is not known."""
    if by_biases is not None:
        return by_biases
    return True if types & CONV1D_MODELS else None


def are_experts_flagged(types: frozenset[str]) -> bool | None:
    """Whether the experts modules of a model of these types say ``is_transposed``; None where that is not known."""
    return None if not types or types & EITHER_EXPERTS else bool(types & FLAGGED_EXPERTS)


def are_experts_stored_in_out(types: frozenset[str]) -> bool | None:
    """Whether a model of these types stores its experts as [in, out]; None where that is not known."""
    return None if not types or types & EITHER_EXPERTS else bool(types & (FLAGGED_EXPERTS | UNFLAGGED_EXPERTS))
