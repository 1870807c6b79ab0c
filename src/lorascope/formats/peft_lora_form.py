"""Sites as a PEFT file of the type LORA: plain pairs, DoRA, biases, experts and convolutions in groups.

Structured updates of low rank are worked out to plain factors. Source: https://github.com/huggingface/peft,
src/peft/tuners/lora/config.py and layer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter, LowRank, Update
from lorascope.adapter.site import expert_of, experts_of, is_rows
from lorascope.errors import AdapterError
from lorascope.formats.pairs import bias_beside, convolution_factors
from lorascope.formats.parametrisations.bdlora import BlockDiagonalLoRA
from lorascope.formats.parametrisations.dora import DoRA
from lorascope.formats.peft_experts import experts_version, nested_keys, refused_experts, stacked
from lorascope.formats.peft_fields import LORA_KEPT, padded, rank_fields
from lorascope.formats.peft_keys import PREFIX
from lorascope.formats.plain_factors import outlined, worked_out
from lorascope.formats.refusals import at_site, check
from lorascope.formats.stream_file import Unit, site_unit

Tensors = dict[str, NDArray[Any]]


def lora_form(adapter: Adapter) -> tuple[list[Unit], dict[str, Any]]:
    """The tensors of the sites, site by site, and the fields of the configuration.

    Raises:
        AdapterError: naming a site that PEFT's LORA has no place for.
    """
    check(lora_refusals(adapter))
    updates = {site: _as_lora(update, outlined) for site, update in adapter.items()}
    groups = experts_of(updates)
    plain = {site: update for site, update in updates.items() if expert_of(site) is None}
    has_biases = any(update.bias is not None for update in plain.values())
    keys = nested_keys(groups)
    units: list[Unit] = [site_unit(site, _site_tensors, site, adapter[site], has_biases=has_biases) for site in plain]
    units += [
        site_unit(path, _fused_tensors, PREFIX + keys[path], [adapter[sites[number]] for number in sorted(sites)])
        for path, sites in groups.items()
    ]
    ranked = {path: updates[sites[0]] for path, sites in groups.items()}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        **rank_fields(
            plain | ranked, {site: max(update.rank, 1) for site, update in (plain | ranked).items()}, "lora_alpha"
        ),
        "target_modules": sorted(plain),
        "fan_in_fan_out": any(update.is_transposed for update in plain.values() if update.layer == "linear"),
        "use_rslora": False,
        "use_dora": any(isinstance(update, DoRA) for update in adapter.values()),
        "lora_bias": has_biases,
        "lora_dropout": 0.0,
        "init_lora_weights": _init(adapter),
        "bias": "none",
    }
    if adapter.provenance.format == "peft":
        own = adapter.provenance.config
        config |= {key: own[key] for key in LORA_KEPT if key in own}
    if groups:
        config["target_parameters"] = sorted(groups)
        config |= experts_version({path: one for path, one in ranked.items() if isinstance(one, LowRank)}) or {}
    return units, config


def lora_refusals(adapter: Adapter) -> Iterator[AdapterError]:
    """An error for each site that PEFT's LORA has no place for, beside the others that there are."""
    updates: dict[str, LowRank | BlockDiagonalLoRA] = {}
    for site, update in adapter.items():
        try:
            if is_rows(site):
                raise AdapterError(
                    "PEFT adapts whole layers, and this site is some rows of one",
                    hint="`lorascope convert --to peft` of each adapter joins the rows of its layers first",
                )
            updates[site] = _as_lora(update, outlined)
        except AdapterError as error:
            yield at_site(error, site)
    yield from refused_experts({site: update for site, update in updates.items() if isinstance(update, LowRank)})
    yield from _refused_beside(adapter, updates)


def _as_lora(update: Update, made_plain: Callable[[Update], Update]) -> LowRank | BlockDiagonalLoRA:
    """The pair that PEFT has for a site: of DoRA the inner one."""
    if isinstance(update, BlockDiagonalLoRA) and update.kernel:
        return update
    update = made_plain(update)
    if isinstance(update, LowRank):
        return padded(update)
    if isinstance(update, DoRA) and isinstance(update.inner, LowRank) and update.axis == "out" and update.bias is None:
        return update.inner
    raise AdapterError(
        "PEFT's LORA has no place for this update",
        expected="a low-rank update, or one with a magnitude for each output",
        found=update.kind,
    )


def _refused_beside(adapter: Adapter, updates: Mapping[str, Update]) -> Iterator[AdapterError]:
    """PEFT states once for all sites whether they have magnitudes and biases, and whether the base is transposed."""
    dora = {site for site in updates if isinstance(adapter[site], DoRA)}
    embedding = next((site for site, update in updates.items() if update.layer == "embedding"), None)
    linear = {update.is_transposed for site, update in updates.items() if _has_flag(site, update)}
    for site, update in updates.items():
        is_expert = expert_of(site) is not None
        if dora and (site not in dora or is_expert):
            yield AdapterError("PEFT states once for all sites whether they are DoRA, and here they differ", key=site)
        elif update.bias is not None and (dora or is_expert or update.layer == "embedding"):
            yield AdapterError("PEFT has no bias at such a site", key=site, found=update.layer)
        elif update.bias is not None and embedding is not None:
            yield AdapterError("PEFT has no biases where an embedding is adapted too", key=site, found=embedding)
        elif len(linear) > 1 and _has_flag(site, update) and update.is_transposed:
            yield AdapterError(
                "PEFT states once for all linear layers whether the base is transposed, and here they differ", key=site
            )
        elif not is_expert and update.layer != "linear" and update.is_transposed != (update.layer == "embedding"):
            yield AdapterError(
                f"PEFT has no {update.layer} of this layout", key=site, found=f"is_transposed={update.is_transposed}"
            )


def _has_flag(site: str, update: Update) -> bool:
    return update.layer == "linear" and expert_of(site) is None


def _fused_tensors(key: str, experts: Sequence[Update]) -> Tensors:
    pair = stacked([one for one in map(worked_out, experts) if isinstance(one, LowRank)])
    return {f"{key}.lora_A.weight": pair.A, f"{key}.lora_B.weight": pair.B}


def _site_tensors(site: str, update: Update, *, has_biases: bool) -> Tensors:
    key, pair = f"{PREFIX}{site}", _as_lora(update, worked_out)
    if pair.layer == "embedding" and isinstance(pair, LowRank):
        tensors = {f"{key}.lora_embedding_A": pair.A, f"{key}.lora_embedding_B": pair.B}
    else:
        B, A = convolution_factors(pair) if isinstance(pair, LowRank) else (pair.stored["B"], pair.stored["A"])
        tensors = {f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}
    if isinstance(update, DoRA):
        ones = (1,) * (len(pair.kernel) - 1)
        shape = (1, pair.shape[0], *ones) if pair.kernel else (pair.shape[0],)
        tensors[f"{key}.lora_magnitude_vector"] = update.stored["magnitude"].reshape(shape)
    if has_biases:  # PEFT has one at every site
        dtype = tensors[f"{key}.lora_B.weight"].dtype
        bias = bias_beside(pair, site)
        tensors[f"{key}.lora_B.bias"] = np.zeros(pair.shape[0], dtype) if bias is None else bias
    return tensors


def _init(adapter: Adapter) -> Any:
    # an adapter against a changed base must go on saying so
    return True if adapter.provenance.is_relative_to_base else adapter.provenance.config.get("init_lora_weights", True)
