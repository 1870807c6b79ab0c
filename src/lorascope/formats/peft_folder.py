"""Writing a PEFT folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

An unedited adapter is written as it was. Others become the PEFT type of their kind (ADALORA, IA3, LOHA, LOKR, VERA)
where all sites are of it and PEFT has a place for their shapes, else LORA, with structured updates of low rank worked
out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter
from lorascope.errors import AdapterError
from lorascope.formats.dtypes import cast_to
from lorascope.formats.output_file import written_folder
from lorascope.formats.peft_fields import PEFT_KEPT
from lorascope.formats.peft_lora_form import lora_form, lora_refusals
from lorascope.formats.peft_typed_form import TYPED_FORMS, typed_form, typed_refusals
from lorascope.formats.refusals import at_site, check
from lorascope.formats.stream_file import Unit, units_of, write_units
from lorascope.formats.unedited_file import is_unedited


def write_peft(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write the folder ``path``, which ``peft.PeftModel.from_pretrained`` loads.

    An adapter that was read from PEFT and not edited is written as it was: the same tensors, metadata and
    configuration letter by letter.

    Raises:
        AdapterError: where PEFT has no place for a site.
        OutputError: where the folder cannot be written.
    """
    if is_unedited(adapter, ("peft",), dtype):
        units, metadata = units_of(adapter.original or {}), adapter.provenance.metadata
        config_text = adapter.provenance.config_text
    else:
        units, config = _form(adapter)
        if dtype is not None:
            units = [partial(_cast, unit, dtype) for unit in units]
        if adapter.provenance.format == "peft":
            units += units_of(adapter.leftovers)
        metadata = {"format": "pt"}
        config_text = json.dumps(config, indent=2, sort_keys=True)
    with written_folder(path) as folder:
        write_units(folder / "adapter_model.safetensors", units, metadata)
        if config_text is not None:
            (folder / "adapter_config.json").write_bytes(config_text.encode("utf-8"))


def peft_refusals(adapter: Adapter) -> Iterator[AdapterError]:
    """An error for each site that a PEFT folder has no place for, beside the others that there are."""
    return lora_refusals(adapter) if typed_form(adapter) is None else typed_refusals(adapter)


def peft_kinds(adapter: Adapter) -> tuple[str, ...]:
    """The kinds of update that a PEFT folder of these sites keeps; others are worked out."""
    return ("lora", "dora", "bdlora") if typed_form(adapter) is None else TYPED_FORMS


def _cast(unit: Unit, dtype: DTypeLike) -> Mapping[str, NDArray[Any]]:
    cast: dict[str, NDArray[Any]] = {}
    for key, tensor in unit().items():
        try:
            cast[key] = cast_to(tensor, dtype)
        except AdapterError as error:
            raise at_site(error, key) from error
    return cast


def peft_config(adapter: Adapter) -> dict[str, Any]:
    """The configuration that gives every site its rank and scale back.

    >>> import numpy as np
    >>> from lorascope.adapter import LowRank
    >>> config = peft_config(Adapter({"q": LowRank(np.ones((4, 2)), np.ones((2, 3)), scale=2.0)}))
    >>> config["r"], config["lora_alpha"], config["target_modules"]
    (2, 4, ['q'])
    """
    return _form(adapter)[1]


def _form(adapter: Adapter) -> tuple[list[Unit], dict[str, Any]]:
    """The tensors of the sites and the configuration."""
    if not adapter.sites:
        raise AdapterError("an adapter without sites cannot be written to this format")
    kept: Mapping[str, Any] = adapter.provenance.config if adapter.provenance.format == "peft" else {}
    common: dict[str, Any] = {
        "base_model_name_or_path": adapter.provenance.base_model,
        "task_type": None,
        "inference_mode": True,
        **{key: kept[key] for key in PEFT_KEPT if key in kept},
    }
    form = typed_form(adapter)
    if form is None:
        units, fields = lora_form(adapter)
        return units, common | fields
    check(typed_refusals(adapter))
    return units_of(form[0]), common | form[1]
