"""Fields of a PEFT configuration that is written: ranks and alphas of the sites, and what is kept of an older one.

Mixed ranks and scales become ``rank_pattern`` and ``alpha_pattern`` with alpha = scale · rank. Reading computes
alpha / rank, so alpha is chosen that gives the very same scale back; where no float64 does (a few scales at ranks
that are no power of two), the nearest one is taken and the scale moves by one unit in the last place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import LowRank, Update
from lorascope.formats.scalars import alphas_for

Form = tuple[dict[str, NDArray[Any]], dict[str, Any]]
"""The tensors of the sites, and the fields of the configuration that are of the type."""

PEFT_KEPT = ("base_model_name_or_path", "revision", "task_type", "modules_to_save", "auto_mapping", "exclude_modules")
"""Fields of an edited adapter's configuration that its tensors do not determine."""

LORA_KEPT = ("bias", "trainable_token_indices", "layer_replication", "alora_invocation_tokens")
"""The same, of the type LORA alone."""


def rank_fields(updates: Mapping[str, Update], ranks: Mapping[str, int], alpha_key: str) -> dict[str, Any]:
    """``r``, alpha and the patterns of the sites that have others."""
    alphas = alphas_for(updates, ranks)
    rank, alpha = _most_common(ranks), _most_common(alphas)
    return {
        "r": rank,
        alpha_key: _number(alpha),
        "rank_pattern": {_exactly(site): value for site, value in ranks.items() if value != rank},
        "alpha_pattern": {_exactly(site): _number(value) for site, value in alphas.items() if value != alpha},
    }


def is_base_transposed(updates: Mapping[str, Update]) -> bool:
    """``fan_in_fan_out``: whether the linear layers of the base are stored as [in, out]."""
    return any(update.is_transposed for update in updates.values() if update.layer == "linear")


def padded(update: LowRank) -> LowRank:
    """The same update with at least one rank: files and trainers have no rank 0."""
    if update.rank:
        return update
    out, in_ = update.shape
    B, A = np.zeros((out, 1), update.B.dtype), np.zeros((1, in_), update.A.dtype)
    return replace(update, B=B, A=A)


def _most_common(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _number(alpha: float) -> float | int:
    return int(alpha) if alpha.is_integer() else alpha


def _exactly(site: str) -> str:
    return f"^{re.escape(site)}"
