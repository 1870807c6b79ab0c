"""Writing a diffusers file of grammar c: PEFT-style keys, with each component's configuration in the metadata.

Source: https://github.com/huggingface/diffusers, src/diffusers/loaders/lora_base.py and src/diffusers/loaders/peft.py.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, LowRank, Update
from lorascope.adapter.site import path_and_part
from lorascope.errors import AdapterError
from lorascope.formats.dtypes import cast_to
from lorascope.formats.output_file import written_folder
from lorascope.formats.pairs import bias_beside, convolution_factors
from lorascope.formats.parametrisations.dora import DoRA
from lorascope.formats.peft_fields import padded
from lorascope.formats.plain_factors import outlined, worked_out
from lorascope.formats.refusals import at_site, check
from lorascope.formats.scalars import alphas_for
from lorascope.formats.stream_file import Unit, site_unit, units_of, write_units
from lorascope.formats.unedited_file import is_unedited

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for in a folder."""

METADATA = "lora_adapter_metadata"
"""The key of the metadata under which the configuration stands."""

_COMPONENTS = (
    *("unet", "transformer", "transformer_2", "transformer_ref", "prior", "connectors", "text_conditioner"),
    *("text_encoder", "text_encoder_2", "text_encoder_3"),
)


def component_of(site: str) -> str:
    """The component of the pipeline that the name begins with, or nothing.

    >>> component_of("unet.mid_block.to_q"), component_of("layers.0.q_proj")
    ('unet', '')
    """
    first = site.partition(".")[0]
    return first if first in _COMPONENTS else ""


def write_diffusers(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write one file of grammar c, with each component's configuration in its metadata.

    ``path`` is the file where it has a suffix; else it is a folder, in which the file gets the name that diffusers
    looks for. alpha = scale · rank at every site. An unedited adapter of this format is written as it was.

    Raises:
        AdapterError: where diffusers has no place for a site, or a component is DoRA at some of its sites only.
        OutputError: where the file cannot be written.
    """
    if is_unedited(adapter, ("diffusers",), dtype):
        units, metadata = units_of(adapter.original or {}), adapter.provenance.metadata
    else:
        units, metadata = _written(adapter, dtype)
    if path.suffix and not path.is_dir():
        write_units(path, units, metadata)
        return
    with written_folder(path) as folder:
        write_units(folder / WEIGHTS_NAME, units, metadata)


def _written(adapter: Adapter, dtype: DTypeLike | None) -> tuple[list[Unit], dict[str, str]]:
    if not adapter.sites:
        raise AdapterError("an adapter without sites cannot be written to this format")
    check(diffusers_refusals(adapter))
    components: dict[str, dict[str, Update]] = {}
    for site, update in adapter.items():
        components.setdefault(component_of(site), {})[site] = update
    units: list[Unit] = []
    config: dict[str, Any] = {}
    for component, sites in components.items():
        plain = {site: _plain(outlined(update)) for site, update in sites.items()}
        has_biases = any(update.bias is not None for update in plain.values())
        units += [
            site_unit(site, _site_tensors, site, update, dtype, has_biases=has_biases) for site, update in sites.items()
        ]
        prefix = f"{component}." if component else ""
        config |= {prefix + key: value for key, value in _component_config(prefix, sites, plain).items()}
    own = adapter.provenance.format == "diffusers"
    metadata = dict(adapter.provenance.metadata) if own else {}
    if own:
        units += units_of(adapter.leftovers)
    return units, metadata | {"format": "pt", METADATA: json.dumps(config, indent=2, sort_keys=True)}


def diffusers_refusals(adapter: Adapter) -> Iterator[AdapterError]:
    """An error for each site that diffusers has no place for, beside the others that there are."""
    named = sorted({component_of(site) for site in adapter} - {""})
    is_dora: dict[str, set[bool]] = {}
    for site, update in adapter.items():
        is_dora.setdefault(component_of(site), set()).add(isinstance(update, DoRA))
    for site, update in adapter.items():
        try:
            if path_and_part(site)[1] is not None:
                raise AdapterError("diffusers adapts whole layers, and this site is a part of one")
            if named and not component_of(site):
                raise AdapterError(
                    "some sites name a component of the pipeline and others do not",
                    expected=f"a name that begins {', '.join(named)}",
                )
            if len(is_dora[component_of(site)]) > 1 and not isinstance(update, DoRA):
                raise AdapterError(
                    "diffusers states once for a component whether it is DoRA, and here the sites differ"
                )
            if "." not in site and site.startswith(("lora_", "lycoris_")):
                raise AdapterError(
                    "the names of kohya's files have lost their dots, so the modules are not known",
                    hint="give the sites the module paths of the pipeline first",
                )
            _plain(outlined(update))
        except AdapterError as error:
            yield at_site(error, site)


def _plain(update: Update) -> LowRank:
    """The low-rank part of a site that diffusers has a layer for."""
    inner = update.inner if isinstance(update, DoRA) else update
    if not isinstance(inner, LowRank):
        raise AdapterError("diffusers files hold only LoRA and DoRA", found=inner.kind)
    if inner.layer in ("embedding", "norm") or inner.is_transposed:
        kind = f"{'transposed ' * inner.is_transposed}{inner.layer}"
        raise AdapterError("diffusers has no LoRA for such a layer", expected="linear, conv", found=kind)
    if isinstance(update, DoRA) and (update.axis == "in" or inner.bias is not None):
        raise AdapterError(
            "this DoRA has no place in a diffusers file",
            expected="a magnitude for each output and no bias",
            found=f"axis {update.axis}{' and a bias' * (inner.bias is not None)}",
        )
    return padded(inner)


def _site_tensors(
    site: str, update: Update, dtype: DTypeLike | None, *, has_biases: bool
) -> Mapping[str, NDArray[Any]]:
    pair = _plain(worked_out(update))
    B, A = convolution_factors(pair)
    tensors = {f"{site}.lora_A.weight": A, f"{site}.lora_B.weight": B}
    if isinstance(update, DoRA):
        ones = (1,) * (len(pair.kernel) - 1)
        shape = (1, pair.shape[0], *ones) if pair.kernel else (pair.shape[0],)
        tensors[f"{site}.lora_magnitude_vector"] = update.stored["magnitude"].reshape(shape)
    if has_biases:  # diffusers states them once for the component, and leaves absent ones without values
        bias = bias_beside(pair, site)
        tensors[f"{site}.lora_B.bias"] = np.zeros(pair.shape[0], B.dtype) if bias is None else bias
    return tensors if dtype is None else {key: cast_to(tensor, dtype) for key, tensor in tensors.items()}


def _component_config(prefix: str, sites: Mapping[str, Update], plain: Mapping[str, LowRank]) -> dict[str, Any]:
    ranks = {site: update.rank for site, update in plain.items()}
    alphas = alphas_for(plain, ranks)
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    return {
        "r": rank,
        "lora_alpha": _json_number(alpha),
        "rank_pattern": {_pattern(prefix, site): value for site, value in ranks.items() if value != rank},
        "alpha_pattern": {
            _pattern(prefix, site): _json_number(value) for site, value in alphas.items() if value != alpha
        },
        "target_modules": sorted({_module(prefix, site) for site in plain}),
        "use_dora": any(isinstance(update, DoRA) for update in sites.values()),
        "lora_bias": any(update.bias is not None for update in plain.values()),
    }


def _commonest(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _json_number(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _module(prefix: str, site: str) -> str:
    """The module's name; a text encoder's ``text_model.`` is left out, as newer transformers have no such module."""
    name = site.removeprefix(prefix)
    return name.removeprefix("text_model.") if prefix.startswith("text_encoder") else name


def _pattern(prefix: str, site: str) -> str:
    """A regular expression for PEFT's ``(.*\\.)?(KEY)$`` that matches this site alone."""
    name = _module(prefix, site)
    return re.escape(name) if name != site.removeprefix(prefix) else f"^{re.escape(name)}"
