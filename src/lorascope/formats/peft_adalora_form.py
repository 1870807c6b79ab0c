"""Sites as a PEFT file of the type ADALORA: the rows that pruning has left, and how many there were.

    scale = lora_alpha / (init_r + 10⁻⁵) at every site; ``rank_pattern`` says for each row of init_r whether it is left

Which of the rows were left makes no difference, so they are put first. Source: https://github.com/huggingface/peft,
src/peft/tuners/adalora/model.py (``resize_modules_by_rank_pattern``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from lorascope.formats.parametrisations.adalora import AdaLoRA
from lorascope.formats.peft_fields import Form, is_base_transposed
from lorascope.formats.peft_keys import PREFIX

_LIMIT = 1 << 24  # of a rank
_KEPT = ("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step", "bias")


def adalora_form(updates: Mapping[str, AdaLoRA], own: Mapping[str, Any]) -> Form | None:
    """The tensors and the fields; None where the sites differ in scale or are no layers that PEFT has it for."""
    scales = {update.scale for update in updates.values()}
    if len(scales) > 1 or min(scales) <= 0 or any(one.layer not in ("linear", "conv2d") for one in updates.values()):
        return None
    first = next(iter(updates.values()))
    rank = _start_rank(first, max(1, *(update.dim for update in updates.values())))
    tensors: dict[str, NDArray[Any]] = {}
    for site, update in updates.items():
        tensors |= {f"{PREFIX}{site}.lora_{role}": update.stored[role] for role in ("A", "B", "E")}
    kept = {key: own[key] for key in _KEPT if key in own and own.get("peft_type") == "ADALORA"}
    mean = sum(update.dim for update in updates.values()) / len(updates)
    return tensors, {
        "peft_type": "ADALORA",
        "init_r": rank,
        "target_r": max(1, round(mean)),
        "lora_alpha": _alpha(first, rank),
        "rank_pattern": {
            f"{site}.lora_E": [True] * update.dim + [False] * (rank - update.dim) for site, update in updates.items()
        },
        "target_modules": sorted(updates),
        "fan_in_fan_out": is_base_transposed(updates),
        "total_step": 1,  # PEFT asks for one, and it is not known of an adapter
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "bias": "none",
        **kept,
    }


def _start_rank(update: AdaLoRA, least: int) -> int:
    """The rank at the start, told by alpha and scale where both are known."""
    if update.alpha is None or update.alpha <= 0:
        return least
    told = update.alpha / update.scale
    return max(least, round(told)) if told < _LIMIT else least


def _alpha(update: AdaLoRA, rank: int) -> float | int:
    """An alpha with alpha / (rank + 10⁻⁵) == scale in float64 where there is one."""
    divisor = rank + 1e-5
    guess = update.scale * divisor
    candidates = [guess, math.nextafter(guess, math.inf), math.nextafter(guess, -math.inf)]
    if update.alpha is not None:
        candidates.insert(0, update.alpha)
    alpha = next((one for one in candidates if one > 0 and one / divisor == update.scale), guess)
    return int(alpha) if float(alpha).is_integer() else alpha
