"""The PEFT type that sites of one kind are written as: one row a kind; other sites become the type LORA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lorascope.adapter import Adapter
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

_FORMS: Mapping[type, Callable[[Any, Mapping[str, Any]], Form | None]] = {
    AdaLoRA: adalora_form,
    IA3: ia3_form,
    LoHa: loha_form,
    LoKr: lokr_form,
    VeRA: vera_form,
}


def typed_form(adapter: Adapter) -> Form | None:
    """The tensors of the sites and the fields of the configuration; None where the sites are of no such type.

    Raises:
        AdapterError: naming a site that PEFT has no place for.
    """
    kinds = {type(update) for update in adapter.values()}
    form = _FORMS.get(kinds.pop()) if len(kinds) == 1 else None
    own: Mapping[str, Any] = adapter.provenance.config if adapter.provenance.format == "peft" else {}
    return None if form is None else form(dict(adapter), own)
