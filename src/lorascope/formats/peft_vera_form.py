"""Sites as a PEFT file of the type VERA, with the projections that all sites share.

Source: https://github.com/huggingface/peft, src/peft/tuners/vera/model.py (``_get_adapter_state_dict``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.formats.parametrisations.vera import VeRA
from lorascope.formats.peft_fields import Form, is_base_transposed
from lorascope.formats.peft_keys import PREFIX


def vera_form(updates: Mapping[str, VeRA], own: Mapping[str, Any]) -> Form | None:
    """The tensors and the fields; None where the sites do not share one pair of projections and its seed."""
    A = max((update.stored["A"] for update in updates.values()), key=lambda one: one.shape[1])
    B = max((update.stored["B"] for update in updates.values()), key=lambda one: one.shape[0])
    seeds = {update.seed for update in updates.values()}
    if len(seeds) > 1 or not all(_is_cut_from(A, B, update) for update in updates.values()):
        return None
    cut_A, cut_B = _as_large_as_needed(A, B, updates)
    tensors: dict[str, NDArray[Any]] = {"base_model.vera_A": cut_A, "base_model.vera_B": cut_B}
    for site, update in updates.items():
        for role in ("lambda_b", "lambda_d"):
            tensors[f"{PREFIX}{site}.vera_{role}"] = update.stored[role]
    return tensors, {
        "peft_type": "VERA",
        "r": A.shape[0],
        "target_modules": sorted(updates),
        "projection_prng_key": seeds.pop() or 0,
        "save_projection": True,
        "fan_in_fan_out": is_base_transposed(updates),
        "vera_dropout": 0.0,
        "init_weights": True,
        "bias": own.get("bias", "none"),
    }


def _is_cut_from(A: NDArray[Any], B: NDArray[Any], update: VeRA) -> bool:
    """Whether the projections of a site are the first columns of A and the first rows of B."""
    own_A, own_B = update.stored["A"], update.stored["B"]
    fits = update.layer == "linear" and own_A.shape[0] == A.shape[0] and own_A.dtype == A.dtype
    fits = fits and own_B.shape[1] == B.shape[1] and own_B.dtype == B.dtype
    return fits and np.array_equal(own_A, A[:, : own_A.shape[1]]) and np.array_equal(own_B, B[: own_B.shape[0]])


def _as_large_as_needed(
    A: NDArray[Any], B: NDArray[Any], updates: Mapping[str, VeRA]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The projections of the size that PEFT gives them: that of the largest site, as far as it is known."""
    shapes = [update.shape for update in updates.values()]
    widest = A.shape[1] if any(in_ < 0 for _, in_ in shapes) else max(in_ for _, in_ in shapes)
    return np.ascontiguousarray(A[:, :widest]), B[: max(out for out, _ in shapes)]
