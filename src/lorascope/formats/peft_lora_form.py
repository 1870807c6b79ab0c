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
from lorascope.formats.pairs import bias_beside, convolution_factors
from lorascope.formats.parametrisations.bdlora import BlockDiagonalLoRA
from lorascope.formats.parametrisations.dora import DoRA
from lorascope.formats.peft_experts import is_expert, nested_keys, stacked
from lorascope.formats.peft_fields import LORA_KEPT, padded, rank_fields
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
        "fan_in_fan_out": _fan_in_fan_out(plain),
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
        config |= _version_of(fused)
    return tensors, config


def _version_of(fused: Mapping[str, LowRank]) -> dict[str, Any]:
    """The version that tells the layout of experts: PEFT took all as [in, out] before 0.19, and asks the base since."""
    layouts = {update.layout for update in fused.values()}
    if layouts == {"unknown"}:
        return {"peft_version": "0.18.2.dev0"}
    kinds = {update.is_transposed and update.layout != "open" for update in fused.values()}
    if len(kinds) > 1 or (len(layouts) > 1 and "unknown" in layouts):
        raise AdapterError(
            "PEFT states once for all experts how the base stores them, and here they differ",
            key=next(f"{path}[0]" for path, update in fused.items() if update.is_transposed),
            expected="all experts of one layout",
        )
    return {} if kinds == {True} else {"peft_version": "0.19.0"}


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
        bias = bias_beside(update, site)
        return padded(LowRank(B, A, factors.scale, update.layer, update.kernel, update.is_transposed, bias=bias))
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
        bias = bias_beside(update, key.removeprefix(PREFIX))
        tensors[f"{key}.lora_B.bias"] = np.zeros(update.shape[0], dtype) if bias is None else bias
    return tensors


def _fan_in_fan_out(updates: Mapping[str, Update]) -> bool:
    transposed = {site: update.is_transposed for site, update in updates.items() if update.layer == "linear"}
    if len(set(transposed.values())) > 1:
        raise AdapterError(
            "PEFT states once for all linear layers whether the base is transposed, and here they differ",
            key=next(site for site, value in transposed.items() if value),
        )
    for site, update in updates.items():
        if update.layer != "linear" and update.is_transposed != (update.layer == "embedding"):
            raise AdapterError(
                f"PEFT has no {update.layer} of this layout", key=site, found=f"is_transposed={update.is_transposed}"
            )
    return any(transposed.values())


def _init(adapter: Adapter) -> Any:
    # an adapter against a changed base must go on saying so
    return True if adapter.provenance.is_relative_to_base else adapter.provenance.config.get("init_lora_weights", True)
