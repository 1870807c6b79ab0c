"""The PEFT type that sites of one kind are written as: one row a kind; other sites become the type LORA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lorascope.adapter import Adapter, Layer, Update
from lorascope.adapter.site import is_rows
from lorascope.errors import AdapterError
from lorascope.formats.parametrisations.adalora import AdaLoRA
from lorascope.formats.parametrisations.ia3 import IA3
from lorascope.formats.parametrisations.loha import LoHa
from lorascope.formats.parametrisations.lokr import LoKr
from lorascope.formats.parametrisations.vera import VeRA
from lorascope.formats.peft_adalora_form import adalora_form
from lorascope.formats.peft_fields import Form
from lorascope.formats.peft_ia3_form import ia3_form
from lorascope.formats.peft_lycoris_form import loha_form, lokr_form
from lorascope.formats.peft_vera_form import vera_form

_TYPES: tuple[tuple[type[Update], Callable[[Any, Mapping[str, Any]], Form | None], tuple[Layer, ...]], ...] = (
    (AdaLoRA, adalora_form, ("linear", "conv2d")),
    (IA3, ia3_form, ("linear", "conv2d", "conv3d")),
    (LoHa, loha_form, ("linear", "conv1d", "conv2d")),
    (LoKr, lokr_form, ("linear", "conv1d", "conv2d")),
    (VeRA, vera_form, ("linear",)),
)

TYPED_FORMS: tuple[str, ...] = tuple(update.kind for update, _, _ in _TYPES)
"""The kinds that PEFT has a type of its own for, and that are written so."""


def typed_form(adapter: Adapter) -> Form | None:
    """The tensors of the sites and the fields of the configuration; None where the sites are of no such type."""
    own: Mapping[str, Any] = adapter.provenance.config if adapter.provenance.format == "peft" else {}
    for kind, form, _ in _TYPES:
        if len(adapter) and all(isinstance(update, kind) for update in adapter.values()):
            return form(dict(adapter), own)
    return None


def typed_refusals(adapter: Adapter) -> Iterator[AdapterError]:
    """An error for each site that the type has no place for."""
    are_turned = {update.is_transposed for update in adapter.values() if update.layer == "linear"}
    for site, update in adapter.items():
        layers = next((layers for kind, _, layers in _TYPES if isinstance(update, kind)), ())
        is_turned = update.is_transposed and isinstance(update, LoHa | LoKr)
        if is_rows(site):
            yield AdapterError("PEFT adapts whole layers, and this site is some rows of one", key=site)
        elif update.layer not in layers or update.bias is not None or is_turned:
            with_bias = " with a bias" if update.bias is not None else ""
            yield AdapterError(
                f"PEFT has no {update.kind} for such a layer",
                key=site,
                expected=f"{', '.join(layers)}, and no bias",
                found=f"{'transposed ' * update.is_transposed}{update.layer}{with_bias}",
            )
        elif len(are_turned) > 1 and update.layer == "linear" and update.is_transposed:
            yield AdapterError(
                "PEFT states once for all linear layers whether the base is transposed, and here they differ", key=site
            )
        elif update.layer != "linear" and update.is_transposed:
            yield AdapterError(f"PEFT has no {update.layer} of this layout", key=site, found="is_transposed=True")
