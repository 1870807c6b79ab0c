"""Sites as a PEFT file of the type LORA: plain pairs, DoRA, biases, experts and convolutions in groups.

Structured updates of low rank are worked out to plain factors. Source: https://github.com/huggingface/peft,
src/peft/tuners/lora/config.py and layer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter, Expanded, LowRank, Update
from lorascope.errors import AdapterError
from lorascope.formats.pairs import convolution_factors
from lorascope.formats.parametrisations.bdlora import BlockDiagonalLoRA
from lorascope.formats.parametrisations.dora import DoRA
from lorascope.formats.peft_experts import is_expert, nested_keys, stacked
from lorascope.formats.peft_fields import LORA_KEPT, fan_in_fan_out, padded, rank_fields
from lorascope.formats.peft_keys import PREFIX

Tensors = dict[str, NDArray[Any]]


def lora_form(adapter: Adapter) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of the sites and the fields of the configuration.

    Raises:
        AdapterError: naming a site that PEFT's LORA has no place for.
    """
    updates = {site: _as_lora(site, update) for site, update in adapter.items()}
    magnitudes = {site: update.stored["magnitude"] for site, update in adapter.items() if isinstance(update, DoRA)}
    _check_all_alike(updates, magnitudes)
    experts = {site: update for site, update in updates.items() if is_expert(site)}
    plain = {site: update for site, update in updates.items() if site not in experts}
    fused = stacked({site: update for site, update in experts.items() if isinstance(update, LowRank)})
    has_biases = any(update.bias is not None for update in plain.values())
    tensors: Tensors = {}
    for site, update in plain.items():
        tensors |= _site_tensors(f"{PREFIX}{site}", update, magnitudes.get(site), has_biases=has_biases)
    keys = nested_keys(fused)
    for path, update in fused.items():
        tensors |= {f"{PREFIX}{keys[path]}.lora_A.weight": update.A, f"{PREFIX}{keys[path]}.lora_B.weight": update.B}
    ranked = {path: experts[f"{path}[0]"] for path in fused}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        **rank_fields(
            plain | ranked, {site: max(update.rank, 1) for site, update in (plain | ranked).items()}, "lora_alpha"
        ),
        "target_modules": sorted(plain),
        "fan_in_fan_out": fan_in_fan_out(plain),
        "use_rslora": False,
        "use_dora": bool(magnitudes),
        "lora_bias": has_biases,
        "lora_dropout": 0.0,
        "init_lora_weights": _init(adapter),
        "bias": "none",
    }
    if adapter.provenance.format == "peft":
        own = adapter.provenance.config
        config |= {key: own[key] for key in LORA_KEPT if key in own}
    if fused:
        config["target_parameters"] = sorted(fused)
        if not any(update.is_transposed for update in ranked.values()):
            config["peft_version"] = "0.19.0"  # before it PEFT took all experts as [in, out]
    return tensors, config


def _as_lora(site: str, update: Update) -> LowRank | BlockDiagonalLoRA:
    """The pair that PEFT has for a site: of DoRA the inner one, of other updates of low rank their factors."""
    if isinstance(update, LowRank):
        return padded(update)
    if isinstance(update, BlockDiagonalLoRA) and update.kernel:
        return update
    if isinstance(update, DoRA) and isinstance(update.inner, LowRank) and update.axis == "out" and update.bias is None:
        return update.inner
    if isinstance(update, Expanded):
        factors = update.factors(np.float64)
        wide = np.float64 if "float64" in update.dtype else np.float32
        B, A = factors.B.astype(wide), factors.A.astype(wide)
        return padded(LowRank(B, A, factors.scale, update.layer, update.kernel, update.is_transposed, bias=update.bias))
    raise AdapterError(
        "PEFT's LORA has no place for this update",
        key=site,
        expected="a low-rank update, or one with a magnitude for each output",
        found=update.kind,
    )


def _check_all_alike(updates: Mapping[str, Update], magnitudes: Mapping[str, Any]) -> None:
    """PEFT states once for all sites whether they have magnitudes and biases."""
    has_biases = any(update.bias is not None for update in updates.values())
    for site, update in updates.items():
        if magnitudes and (site not in magnitudes or is_expert(site)):
            raise AdapterError("PEFT states once for all sites whether they are DoRA, and here they differ", key=site)
        if update.bias is not None and (magnitudes or is_expert(site) or update.layer == "embedding"):
            raise AdapterError("PEFT has no bias at such a site", key=site, found=update.layer)
        if has_biases and update.layer == "embedding":
            biased = next(name for name, one in updates.items() if one.bias is not None)
            raise AdapterError("PEFT has no biases where an embedding is adapted too", key=biased, found=site)


def _site_tensors(
    key: str, update: LowRank | BlockDiagonalLoRA, magnitude: NDArray[Any] | None, *, has_biases: bool
) -> Tensors:
    if update.layer == "embedding" and isinstance(update, LowRank):
        tensors = {f"{key}.lora_embedding_A": update.A, f"{key}.lora_embedding_B": update.B}
    else:
        B, A = convolution_factors(update) if isinstance(update, LowRank) else (update.stored["B"], update.stored["A"])
        tensors = {f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}
    if magnitude is not None:
        ones = (1,) * (len(update.kernel) - 1)
        shape = (1, update.shape[0], *ones) if update.kernel else (update.shape[0],)
        tensors[f"{key}.lora_magnitude_vector"] = magnitude.reshape(shape)
    if has_biases:  # PEFT has one at every site
        dtype = tensors[f"{key}.lora_B.weight"].dtype
        tensors[f"{key}.lora_B.bias"] = np.zeros(update.shape[0], dtype) if update.bias is None else update.bias
    return tensors


def _init(adapter: Adapter) -> Any:
    # an adapter against a changed base must go on saying so
    return True if adapter.provenance.is_relative_to_base else adapter.provenance.config.get("init_lora_weights", True)
