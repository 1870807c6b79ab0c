"""ComfyUI's generic keys: the full name of a layer of the model, then any of the suffixes that ComfyUI reads.

    diffusion_model.<path>.lora_up.weight / .lora_A.weight / .lora.up.weight / .lora_B / .lokr_w1 / .diff / .diff_b …
    text_encoders.clip_l.transformer.<path>.…

    ΔW = (alpha/rank) · B · A;   no alpha: scale 1.    ``diff`` and ``diff_b`` are added as they are, ``set_weight``
    takes the place of the weight, ``reshape_weight`` states the shape to which the base weight is padded with zeros.

Files of ai-toolkit and SimpleTuner with LyCORIS keys under dotted names are read alike.

Source: https://github.com/comfyanonymous/ComfyUI, comfy/lora.py and comfy/weight_adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, Provenance, Update
from lorascope.errors import AdapterError
from lorascope.formats.contents import Contents
from lorascope.formats.dotted_names import DENOISER, dotted_sites, name_of
from lorascope.formats.dtypes import cast_to
from lorascope.formats.kohya_file import WRITES, check_site, site_notes, site_tensors
from lorascope.formats.kohya_sites import DOTTED_SUFFIXES, Builder, grouped, kind_of, split_key
from lorascope.formats.notes import leftover_notes
from lorascope.formats.plain_factors import worked_out
from lorascope.formats.refusals import at_site, check
from lorascope.formats.registry import SPECIFIC, Evidence, Format
from lorascope.formats.stream_file import Unit, site_unit, units_of, write_units
from lorascope.formats.unedited_file import is_unedited

_OWN = re.compile(
    r"\.(lora_(up|down)\.weight|hada_w[12]_[ab]|lokr_w[12](_[ab])?|oft_blocks|w_norm|diff|diff_b|on_input|set_weight)$"
)
_PREFIXES = (DENOISER, "text_encoders.")


def recognise_comfyui(contents: Contents) -> Evidence | None:
    """Known suffixes after ``diffusion_model.`` or ``text_encoders.``, or keys of kohya's family after dotted names."""
    for key in contents.tensors:
        parsed = split_key(key, DOTTED_SUFFIXES)
        if parsed is None or "." not in parsed[0] or key.startswith("base_model."):
            continue
        if key.startswith(_PREFIXES) and parsed[1] not in ("weight", "alpha", "scalar", "rescale"):
            return Evidence(SPECIFIC + 10, f"keys start with {key.partition('.')[0]}.")
        if _OWN.search(key):
            return Evidence(SPECIFIC, "keys of kohya's family after names with dots")
    return None


def read_comfyui(contents: Contents) -> Adapter:
    """The adapter of a file with ComfyUI's keys.

    Raises:
        AdapterError: where a site's keys do not make one update.
    """
    return read_dotted(contents, "comfyui")


def read_dotted(contents: Contents, format: str) -> Adapter:
    """The adapter of a file whose names keep their dots.

    Raises:
        AdapterError: where a site's keys do not make one update.
    """
    groups, left = grouped(contents.tensors, DOTTED_SUFFIXES, bool)
    names = dotted_sites(groups, contents.metadata)
    builder = Builder(contents.tensors)
    sites = {names[name]: builder.update(names[name], group) for name, group in groups.items()}
    if not sites:
        raise AdapterError("no update in this file", found=", ".join(list(contents.tensors)[:3])[:120])
    leftovers = {key: contents.tensors[key] for key in left}
    return Adapter(
        sites=sites,
        provenance=Provenance(
            format=format,
            kind=kind_of(sites.values()),
            path=contents.path,
            base_model=contents.metadata.get("ss_base_model_version")
            or contents.metadata.get("modelspec.architecture"),
            config=contents.config or {},
            config_text=contents.config_text,
            metadata=contents.metadata,
        ),
        leftovers=leftovers,
        notes=(
            *site_notes(sites, [builder], "no alpha, or alpha 0: scale 1 (alpha = rank)"),
            *leftover_notes(leftovers, {}),
        ),
    )


def write_comfyui(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write one file with ``lora_up``, ``lora_down`` and ``alpha`` after the full names of the layers.

    alpha = scale · dim at every site. An unedited adapter of this format is written as it was.

    Raises:
        AdapterError: where a site is of a kind that such files have not, or ComfyUI knows no layer of its name.
        OutputError: where the file cannot be written.
    """
    is_own = adapter.provenance.format == "comfyui"
    metadata = dict(adapter.provenance.metadata) if is_own else {}
    if is_unedited(adapter, ("comfyui",), dtype):
        write_units(path, units_of(adapter.original or {}), metadata)
        return
    if not adapter:
        raise AdapterError("an adapter without sites cannot be written to this format")
    check(comfyui_refusals(adapter))
    units: list[Unit] = [site_unit(site, _tensors, site, update, dtype) for site, update in adapter.items()]
    write_units(path, units + units_of(adapter.leftovers if is_own else {}), metadata)


def comfyui_refusals(adapter: Adapter) -> Iterator[AdapterError]:
    """An error for each site that ComfyUI has no place or no name for, beside the others that there are."""
    for site, update in adapter.items():
        try:
            check_site(site, update)
            if name_of(site) is None:
                raise AdapterError(
                    "ComfyUI's generic keys have no name for this site",
                    expected="a layer of a transformer under its own names, or of text_encoder, text_encoder_2 or _3",
                    hint="layers of a U-Net it reads from kohya files: write those",
                )
        except AdapterError as error:
            yield at_site(error, site)


def _tensors(site: str, update: Update, dtype: DTypeLike | None) -> dict[str, NDArray[Any]]:
    return {
        f"{name_of(site)}.{suffix}": tensor if dtype is None or suffix == "alpha" else cast_to(tensor, dtype)
        for suffix, tensor in site_tensors(worked_out(update, WRITES)).items()
    }


FORMATS = (
    Format(
        name="comfyui",
        title="ComfyUI or ai-toolkit LoRA",
        reference="https://github.com/comfyanonymous/ComfyUI",
        recognise=recognise_comfyui,
        read=read_comfyui,
        write=write_comfyui,
        refusals=comfyui_refusals,
        writes=WRITES,
        site_examples=(
            "transformer.double_blocks.0.img_attn.qkv",
            "transformer.transformer_blocks.3.attn.to_q",
            *(f"text_encoder.text_model.encoder.layers.{layer}.self_attn.q_proj" for layer in (0, 11)),
        ),
        kinds=(
            "lora",
            "locon",
            "loha",
            "lokr",
            "dora",
            "full",
            "replaced",
            "lycoris-oft",
            "lycoris-boft",
            "glora",
            "lycoris-ia3",
        ),
        files="`diffusion_model.….lora_up.weight`, `.lora_B.weight`, `.lora.up`, `.lokr_w1`, `.diff`, `.set_weight`",
    ),
)
