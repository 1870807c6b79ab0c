"""Writing a PEFT folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

Mixed ranks and scales become ``rank_pattern`` and ``alpha_pattern`` with alpha = scale · rank. Reading computes
alpha / rank, so alpha is chosen that gives the very same scale back; where no float64 does (a few scales at ranks
that are no power of two), the nearest one is taken and the scale moves by one unit in the last place.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import AdapterError
from lorascope.formats.output_file import written_folder
from lorascope.formats.pairs import convolution_factors
from lorascope.formats.safetensors_file import write_safetensors

PREFIX = "base_model.model."

_KEPT_FIELDS = ("base_model_name_or_path", "revision", "task_type", "modules_to_save", "bias", "auto_mapping")


def write_peft(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write the folder ``path``, which ``peft.PeftModel.from_pretrained`` loads.

    An adapter that was read from PEFT and not edited is written as it was: the same tensors, metadata and
    configuration letter by letter.

    Raises:
        AdapterError: where a site is not a plain low-rank update or PEFT has no place for it.
        OutputError: where the folder cannot be written.
    """
    if adapter.original is not None and adapter.provenance.format == "peft" and dtype is None:
        tensors, metadata = adapter.original, adapter.provenance.metadata
        config_text = adapter.provenance.config_text
    else:
        tensors = _tensors(adapter, dtype)
        metadata = {"format": "pt"}
        config_text = json.dumps(peft_config(adapter), indent=2, sort_keys=True)
    with written_folder(path) as folder:
        write_safetensors(folder / "adapter_model.safetensors", tensors, metadata)
        if config_text is not None:
            (folder / "adapter_config.json").write_bytes(config_text.encode("utf-8"))


def peft_config(adapter: Adapter) -> dict[str, Any]:
    """The configuration that gives every site its rank and scale back.

    >>> from lorascope.adapter import LowRank
    >>> config = peft_config(Adapter({"q": LowRank(np.ones((4, 2)), np.ones((2, 3)), scale=2.0)}))
    >>> config["r"], config["lora_alpha"], config["target_modules"]
    (2, 4, ['q'])
    """
    updates = plain_updates(adapter)
    ranks = {site: max(update.rank, 1) for site, update in updates.items()}
    alphas = {site: alpha_for(update, ranks[site]) for site, update in updates.items()}
    rank = _most_common(ranks)
    alpha = _most_common(alphas)
    kept: Mapping[str, Any] = adapter.provenance.config if adapter.provenance.format == "peft" else {}
    return {
        "base_model_name_or_path": adapter.provenance.base_model,
        "task_type": None,
        "bias": "none",
        **{key: kept[key] for key in _KEPT_FIELDS if key in kept},
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _number(alpha),
        "rank_pattern": {_exactly(site): value for site, value in ranks.items() if value != rank},
        "alpha_pattern": {_exactly(site): _number(value) for site, value in alphas.items() if value != alpha},
        "target_modules": sorted(updates),
        "fan_in_fan_out": _fan_in_fan_out(updates),
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "init_lora_weights": _init(adapter),
        "inference_mode": True,
    }


def plain_updates(adapter: Adapter) -> dict[str, LowRank]:
    """The sites, all of them plain low-rank updates.

    Raises:
        AdapterError: naming the first site that is none.
    """
    updates: dict[str, LowRank] = {}
    for site, update in adapter.items():
        if not isinstance(update, LowRank):
            raise AdapterError(
                "only plain low-rank updates can be written to this format",
                key=site,
                expected="ΔW = scale · B · A",
                found=type(update).__name__,
            )
        updates[site] = update
    if not updates:
        raise AdapterError("an adapter without sites cannot be written to this format")
    return updates


def alpha_for(update: LowRank, rank: int) -> float:
    """An alpha with alpha / rank == scale in float64 where there is one: the stated one if it fits."""
    guess = update.scale * rank
    candidates = [guess, math.nextafter(guess, math.inf), math.nextafter(guess, -math.inf)]
    if update.alpha is not None:
        candidates.insert(0, update.alpha)
    return next((alpha for alpha in candidates if alpha / rank == update.scale), guess)


def _most_common(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _number(alpha: float) -> float | int:
    return int(alpha) if alpha.is_integer() else alpha


def _exactly(site: str) -> str:
    return f"^{re.escape(site)}"


def _fan_in_fan_out(updates: Mapping[str, LowRank]) -> bool:
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


def _tensors(adapter: Adapter, dtype: DTypeLike | None) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    for site, update in plain_updates(adapter).items():
        B, A = convolution_factors(padded(update))
        embedding = update.layer == "embedding"
        for half, tensor in (("A", A), ("B", B)):
            ending = f"lora_embedding_{half}" if embedding else f"lora_{half}.weight"
            tensors[f"{PREFIX}{site}.{ending}"] = tensor if dtype is None else cast_to(tensor, dtype)
    if adapter.provenance.format == "peft":
        if any(".lora_B." in key for key in adapter.leftovers):
            raise AdapterError(
                "the biases of LoRA layers do not follow an edit, so the edited adapter cannot be written",
                key=next(key for key in adapter.leftovers if ".lora_B." in key),
            )
        tensors |= adapter.leftovers
    return tensors


def padded(update: LowRank) -> LowRank:
    """The same update with at least one rank: files and trainers have no rank 0."""
    if update.rank:
        return update
    out, in_ = update.shape
    B, A = np.zeros((out, 1), update.B.dtype), np.zeros((1, in_), update.A.dtype)
    return LowRank(B, A, update.scale, update.layer, update.kernel, update.is_transposed, update.alpha)


def cast_to(tensor: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """The tensor in ``dtype``, which may be a name that ml-dtypes knows, such as ``bfloat16``."""
    import ml_dtypes

    known: Any = getattr(ml_dtypes, dtype, dtype) if isinstance(dtype, str) else dtype
    with np.errstate(over="ignore"):
        result = tensor.astype(known)
    if bool(np.isfinite(tensor.astype(np.float64)).all()) and not bool(np.isfinite(result.astype(np.float64)).all()):
        raise AdapterError("a value is too large for the dtype asked for", found=np.dtype(known).name)
    return result
