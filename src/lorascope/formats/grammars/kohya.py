"""kohya sd-scripts: ``<name>.lora_down.weight``, ``.lora_up.weight``, ``.alpha``; no dots inside ``<name>``.

    ΔW = (alpha/rank) · up · down                      rank = rows of lora_down; alpha missing or 0: scale 1
    with lora_mid (Tucker, LoCon):  ΔW[i,j,k,l] = scale · Σ up[i,m] · mid[m,n,k,l] · down[n,j]

Names are module paths with ``_`` for ``.``, which cannot be undone without the model, so sites keep them. The Tucker
core is multiplied out in float64: B = up, A[m] = Σₙ mid[m,n] down[n] is exact and has the rank of ``up``.

Source: https://github.com/kohya-ss/sd-scripts, networks/lora.py and networks/merge_lora.py;
https://github.com/KohakuBlueleaf/LyCORIS, lycoris/modules/locon.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, Layer, LowRank, Note, Provenance
from lorascope.errors import AdapterError
from lorascope.formats.contents import Contents
from lorascope.formats.notes import assumed_scale_note, leftover_notes
from lorascope.formats.pairs import Halves, Scale, convolution_factors, is_floating, low_rank
from lorascope.formats.peft_folder import alpha_for, cast_to, padded, plain_updates
from lorascope.formats.registry import SPECIFIC, Evidence, Format
from lorascope.formats.safetensors_file import write_safetensors
from lorascope.formats.scalars import stated_alpha

MAX_TUCKER = 1 << 26
"""Numbers that the multiplied-out Tucker cores of one file may have together (512 MiB)."""

_FACTOR = re.compile(r"(?P<site>[^.]+)\.lora_(?P<half>down|up|mid)\.weight")
_ALPHA = re.compile(r"(?P<site>[^.]+)\.alpha")
_FUSED = re.compile(r"lora_unet_(double_blocks_.*_qkv|single_blocks_.*_linear1)")
_PREFIXES: Mapping[str, str] = {
    "unet": "lora_unet_",
    "transformer": "lora_transformer_",
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
    "text_encoder_3": "lora_te3_",
}


def recognise_kohya(contents: Contents) -> Evidence | None:
    """Keys ``<name>.lora_down.weight`` with a name that has no dots."""
    if any(_FACTOR.fullmatch(key) for key in contents.tensors):
        return Evidence(SPECIFIC, "keys end lora_down.weight after a name without dots")
    return None


def read_kohya(contents: Contents) -> Adapter:
    """The adapter of a kohya file.

    Raises:
        AdapterError: where a pair is broken, an alpha is no number, or the file is DoRA.
    """
    halves, middles, alphas, leftover_keys = Halves(), dict[str, str](), dict[str, float | None](), list[str]()
    for key, tensor in contents.tensors.items():
        if key.endswith(".dora_scale"):
            raise AdapterError("DoRA is recognised, but not read by this version", key=key)
        if match := _FACTOR.fullmatch(key):
            if match["half"] == "mid":
                middles[match["site"]] = key
            else:
                halves.add(match["site"], "A" if match["half"] == "down" else "B", key)
        elif match := _ALPHA.fullmatch(key):
            alphas[match["site"]] = stated_alpha(tensor, key)
        else:
            leftover_keys.append(key)
    pairs = halves.checked()
    leftover_keys += [f"{site}.alpha" for site in alphas if site not in pairs]
    if stray := next((site for site in middles if site not in pairs), None):
        raise AdapterError("lora_mid without lora_up and lora_down", key=stray)

    sites: dict[str, LowRank] = {}
    assumed: list[str] = []
    room = MAX_TUCKER
    for site, keys in pairs.items():
        alpha = alphas.get(site)
        if alpha is None:
            assumed.append(site)

        def scale_of(rank: int, alpha: float | None = alpha) -> Scale:
            return Scale(1.0, None, True) if alpha is None else Scale(alpha / rank, alpha)

        if site in middles:
            sites[site] = _tucker(site, contents, keys, middles[site], scale_of, room)
            room -= sites[site].A.size
        else:
            sites[site] = low_rank(site, contents.tensors, keys, scale_of)
    leftovers = {key: contents.tensors[key] for key in leftover_keys}
    return Adapter(
        sites=sites,
        provenance=Provenance(
            format="kohya",
            kind="locon" if middles else "lora",
            path=contents.path,
            base_model=_base_model(contents.metadata),
            config=contents.config or {},
            config_text=contents.config_text,
            metadata=contents.metadata,
        ),
        leftovers=leftovers,
        notes=(*_notes(sites, assumed, len(middles)), *leftover_notes(leftovers, {})),
    )


def _base_model(metadata: Mapping[str, str]) -> str | None:
    for key in ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name"):
        if metadata.get(key):
            return metadata[key]
    return None


def _notes(sites: Mapping[str, LowRank], assumed: list[str], tucker: int) -> list[Note]:
    notes: list[Note] = []
    if assumed:
        notes.append(assumed_scale_note(assumed, "no alpha, or alpha 0: scale 1 (alpha = rank)"))
    if tucker:
        notes.append(Note("tucker", f"{tucker} sites have a Tucker core, multiplied out to B · A exactly"))
    for site, update in sites.items():
        if parts := _split_parts(site, update):
            notes.append(
                Note(
                    "fused-blocks",
                    f"up is block-diagonal in {parts} blocks: alpha may be meant for rank {update.rank // parts}, "
                    f"then the scale is {update.scale * parts:g} and not {update.scale:g}",
                    site,
                )
            )
    return notes


def _split_parts(site: str, update: LowRank) -> int:
    """The number of diagonal blocks of ``up`` at a fused q, k, v layer of Flux; 0 elsewhere.

    Only two rows are looked at: the first lives in the first block of columns, the last in the last.
    """
    if update.layer != "linear" or not _FUSED.fullmatch(site):
        return 0
    parts = 3 if "double" in site else 4
    width = update.rank // parts
    if update.rank % parts or not width:
        return 0
    first, last = update.B[0].astype(np.float32), update.B[-1].astype(np.float32)
    is_split = not first[width:].any() and not last[:-width].any() and bool(first.any() or last.any())
    return parts if is_split else 0


def _tucker(site: str, contents: Contents, keys: tuple[str, str], mid_key: str, scale_of: Any, room: int) -> LowRank:
    up, down, mid = (contents.tensors[key] for key in (*keys, mid_key))
    kernel = mid.shape[2:]
    fits = (
        all(tensor.ndim == mid.ndim and is_floating(tensor) and tensor.size for tensor in (up, down, mid))
        and mid.ndim in (3, 4, 5)
        and math.prod(up.shape[2:]) == math.prod(down.shape[2:]) == 1
        and mid.shape[:2] == (up.shape[1], down.shape[0])
    )
    if not fits:
        raise AdapterError(
            "up, mid and down do not make a product",
            key=site,
            expected="up [out, m, 1, 1], mid [m, n, …], down [n, in, 1, 1]",
            found=f"{list(up.shape)}, {list(mid.shape)}, {list(down.shape)}",
        )
    rank, channels = int(mid.shape[0]), int(down.shape[1])
    if rank * channels * math.prod(kernel) > room:
        raise AdapterError(
            "the Tucker cores of this file are too large to be multiplied out",
            key=site,
            expected=f"at most {MAX_TUCKER} numbers in all",
        )
    core = mid.reshape(rank, mid.shape[1], -1).astype(np.float64)
    A = np.einsum("mnk,nj->mjk", core, down.reshape(down.shape[0], channels).astype(np.float64))
    scale = scale_of(int(down.shape[0]))
    layers: dict[int, Layer] = {3: "conv1d", 4: "conv2d", 5: "conv3d"}
    return LowRank(
        up.reshape(up.shape[:2]),
        A.reshape(rank, -1),
        scale.scale,
        layer=layers[mid.ndim],
        kernel=(channels, *kernel),
        alpha=scale.alpha,
        keys=(keys[0], f"{mid_key} · {keys[1]}"),
    )


def write_kohya(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write one kohya file, alpha = scale · rank at every site; unedited kohya adapters are written as they were.

    Names of other formats lose their dots: a component prefix becomes kohya's (``unet.`` → ``lora_unet_``), and
    names without one are taken for the U-Net's.

    Raises:
        AdapterError: where a site is an embedding or transposed, or two names become one.
        OutputError: where the file cannot be written.
    """
    if adapter.original is not None and adapter.provenance.format == "kohya" and dtype is None:
        write_safetensors(path, adapter.original, adapter.provenance.metadata)
        return
    tensors: dict[str, NDArray[Any]] = {}
    for site, given in plain_updates(adapter).items():
        update, name = padded(given), _flattened(site)
        if update.is_transposed:
            raise AdapterError("kohya files have no embeddings and no transposed layers", key=site)
        if f"{name}.alpha" in tensors:
            raise AdapterError("two sites have one name without dots", key=site, found=name)
        up, down = convolution_factors(update)
        alpha = np.float64(alpha_for(update, update.rank))
        if alpha == 0:  # in the file alpha 0 means "not stated"
            up, alpha = np.zeros_like(up), np.float64(update.rank)
        is_exact = float(np.float32(alpha)) == float(alpha)
        tensors[f"{name}.alpha"] = np.array(alpha, np.float32 if is_exact else np.float64)
        tensors[f"{name}.lora_down.weight"] = down if dtype is None else cast_to(down, dtype)
        tensors[f"{name}.lora_up.weight"] = up if dtype is None else cast_to(up, dtype)
    is_kohya = adapter.provenance.format == "kohya"
    if is_kohya:
        tensors |= adapter.leftovers
    write_safetensors(path, tensors, adapter.provenance.metadata if is_kohya else None)


def _flattened(site: str) -> str:
    component, dot, rest = site.partition(".")
    if not dot and site.startswith(("lora_", "lycoris_")):
        return site
    prefix = _PREFIXES.get(component) if dot else None
    return (prefix + rest if prefix else f"lora_unet_{site}").replace(".", "_")


FORMATS = (
    Format(
        name="kohya",
        title="kohya LoRA",
        reference="https://github.com/kohya-ss/sd-scripts",
        recognise=recognise_kohya,
        read=read_kohya,
        write=write_kohya,
        writes=("lora",),
    ),
)
