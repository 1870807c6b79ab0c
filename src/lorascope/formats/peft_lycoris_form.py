"""Sites as a PEFT file of the types LOHA and LOKR.

    scale = alpha/r at every site, also where both factors of a LoKr are whole; alpha is chosen to give the scale back

PEFT makes LoKr's factors anew from r, ``decompose_factor``, ``decompose_both`` and ``use_effective_conv2d`` before it
loads them, so these are sought that give every site the shapes it has. Where there are none, the sites become LORA.

Source: https://github.com/huggingface/peft, src/peft/tuners/loha/layer.py and src/peft/tuners/lokr/layer.py
(``factorization``, ``update_layer``, ``create_adapter_parameters``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from lorascope.formats.parametrisations.loha import LoHa
from lorascope.formats.parametrisations.lokr import LoKr, factorised
from lorascope.formats.peft_fields import Form, rank_fields
from lorascope.formats.peft_keys import PREFIX
from lorascope.formats.peft_scale import PEFT_RANK, PeftScale


def loha_form(updates: Mapping[str, LoHa], own: Mapping[str, Any]) -> Form | None:
    """The tensors and the fields of the configuration; None where PEFT's LOHA has no place for such cores."""
    effective = {update.shape[1] > 0 and "t1" in update.stored for update in updates.values()}
    if len(effective) > 1 and own.get("peft_type") != "LOHA":
        return None  # PEFT states once for all convolutions whether they have Tucker cores
    return _tensors(updates, "hada_"), {
        "peft_type": "LOHA",
        **rank_fields(updates, {site: update.dim for site, update in updates.items()}, "alpha"),
        "target_modules": sorted(updates),
        "use_effective_conv2d": True in effective,
        "init_weights": True,
    }


def lokr_form(updates: Mapping[str, LoKr], own: Mapping[str, Any]) -> Form | None:
    """The tensors and the fields of the configuration; None where PEFT makes no factors of such shapes."""
    if own.get("peft_type") == "LOKR":  # its shapes are PEFT's
        layout = _Layout(
            own.get("decompose_factor", -1), own.get("decompose_both", False), own.get("use_effective_conv2d", False)
        )
        rule = PeftScale.of(own, "alpha")
        ranks = {site: rule.stated_rank(site) or PEFT_RANK for site in updates}
    else:
        fitting = next((one for one in _layouts(updates) if all(one.rank(update) for update in updates.values())), None)
        if fitting is None:
            return None
        layout, ranks = fitting, {site: fitting.rank(update) or 1 for site, update in updates.items()}
    return _tensors(updates, "lokr_"), {
        "peft_type": "LOKR",
        **rank_fields(updates, ranks, "alpha"),
        "target_modules": sorted(updates),
        "decompose_factor": layout.factor,
        "decompose_both": layout.is_both,
        "use_effective_conv2d": layout.is_effective,
        "init_weights": True,
    }


def _tensors(updates: Mapping[str, LoHa | LoKr], prefix: str) -> dict[str, NDArray[Any]]:
    return {  # PEFT's Tucker cores have two kernel axes, also in one dimension
        f"{PREFIX}{site}.{prefix}{role}": tensor[..., None] if role.startswith("t") and tensor.ndim == 3 else tensor
        for site, update in updates.items()
        for role, tensor in update.stored.items()
    }


@dataclass(frozen=True)
class _Layout:
    """The fields by which PEFT gives the factors of a LoKr their shapes."""

    factor: int
    is_both: bool
    is_effective: bool

    def rank(self, update: LoKr) -> int | None:
        """The r under which PEFT gives the factors of this update the shapes that they have, None where none does."""
        out, columns = update.base_shape[0], update.kernel[0] if update.kernel else update.shape[1]
        kernel = update.kernel[1:]
        (a, b), (c, d) = factorised(out, self.factor), factorised(columns, self.factor)
        rank = update.dim if not update.is_whole else max(1, -(-max(b, d) // 2))
        is_whole_1 = not (self.is_both and rank < max(a, c) / 2)
        is_whole_2 = rank >= max(b, d) / 2
        if len(kernel) == 1 and is_whole_2:
            return None  # PEFT puts the axes of this product together in another order
        has_core = self.is_effective and len(kernel) == 2 and kernel != (1, 1)
        expected: dict[str, tuple[int, ...]] = {"w1": (a, c)} if is_whole_1 else {"w1_a": (a, rank), "w1_b": (rank, c)}
        if is_whole_2:
            expected["w2"] = (b, d, *kernel)
        elif has_core:
            expected |= {"t2": (rank, rank, *kernel), "w2_a": (rank, b), "w2_b": (rank, d)}
        else:
            expected |= {"w2_a": (b, rank), "w2_b": (rank, d * math.prod(kernel))}
        return rank if expected == {role: tensor.shape for role, tensor in update.stored.items()} else None


def _layouts(updates: Mapping[str, LoKr]) -> Iterator[_Layout]:
    """All layouts worth a try: PEFT's own first, then the divisors that the first factors show."""
    shown: dict[int, None] = {-1: None}
    for update in updates.values():
        first = update.stored["w1"].shape if "w1" in update.stored else ()
        shown |= dict.fromkeys(first or (update.stored["w1_a"].shape[0], update.stored["w1_b"].shape[1]))
    for factor in shown:
        for is_both in (False, True):
            for is_effective in (False, True):
                yield _Layout(factor, is_both, is_effective)
