"""Reading and writing files of the kohya family: kohya's own and those of LyCORIS, which differ in what they hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, Expanded, LowRank, Note, Provenance, Update
from lorascope.errors import AdapterError
from lorascope.formats.contents import Contents
from lorascope.formats.dtypes import cast_to
from lorascope.formats.folding import wide_product
from lorascope.formats.kohya_names import SITES_KEY, flattened, listed, names_of, sites_of
from lorascope.formats.kohya_sites import SUFFIXES, Builder, grouped, kind_of, split_parts
from lorascope.formats.notes import assumed_scale_note, leftover_notes
from lorascope.formats.pairs import convolution_factors
from lorascope.formats.parametrisations.dora import DoRA
from lorascope.formats.peft_fields import padded
from lorascope.formats.plain_factors import outlined, worked_out
from lorascope.formats.refusals import at_site, check
from lorascope.formats.scalars import alpha_for
from lorascope.formats.stream_file import Unit, site_unit, units_of, write_units
from lorascope.formats.unedited_file import is_unedited

FAMILY = ("kohya", "lycoris")

WRITES = ("lora", "locon", "loha", "lokr", "dora", "full")
"""The parametrisations that a file of the family can be given from any other format."""

_FUSED = re.compile(r"(?:.*[._])?(?P<stream>double|single)_blocks[._]\d+[._](?:(?:img|txt)_attn[._]qkv|linear1)")
_PREFIXES = {"loha": "hada_", "lokr": "lokr_"}


def read_flat(contents: Contents, format: str) -> Adapter:
    """The adapter of a file whose names have no dots.

    Raises:
        AdapterError: where a site's keys do not make one update.
    """
    groups, left = grouped(contents.tensors, SUFFIXES, lambda name: bool(name) and "." not in name)
    names = sites_of(groups, contents.metadata)
    builders = {is_oft: Builder(contents.tensors, is_kohya_oft=is_oft) for is_oft in (False, True)}
    sites: dict[str, Update] = {}
    for name, group in groups.items():
        sites[names[name]] = builders[name.startswith("oft_unet_")].update(names[name], group)
    if not sites:
        raise AdapterError("no update in this file", found=", ".join(list(contents.tensors)[:3])[:120])
    leftovers = {key: contents.tensors[key] for key in left}
    return Adapter(
        sites=sites,
        provenance=Provenance(
            format=format,
            kind=kind_of(sites.values()),
            path=contents.path,
            base_model=_base_model(contents.metadata),
            config=contents.config or {},
            config_text=contents.config_text,
            metadata=contents.metadata,
        ),
        leftovers=leftovers,
        notes=(
            *_name_notes(names),
            *site_notes(sites, builders.values(), "no alpha, or alpha 0: scale 1 (alpha = rank)"),
            *leftover_notes(leftovers, {}),
        ),
    )


def _base_model(metadata: Mapping[str, str]) -> str | None:
    for key in ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name"):
        if metadata.get(key):
            return metadata[key]
    return None


def _name_notes(names: Mapping[str, str]) -> list[Note]:
    flat = [name for name, site in names.items() if name == site]
    if not flat:
        return []
    where = f"{len(flat)} sites keep" if len(flat) > 1 else "one site keeps"
    return [
        Note(
            "flat-names",
            f"{where} the file's name, whose dots are lost: {', '.join(name[:80] for name in flat[:3])}",
            flat[0] if len(flat) == 1 else None,
        )
    ]


def site_notes(sites: Mapping[str, Update], builders: Iterable[Builder], assumption: str) -> list[Note]:
    """What was assumed or is unusual at the sites; ``assumption`` says what was taken for a missing alpha."""
    notes: list[Note] = []
    builders = list(builders)
    if assumed := [site for builder in builders for site in builder.assumed]:
        notes.append(assumed_scale_note(assumed, assumption))
    if tucker := [site for builder in builders for site in builder.tucker]:
        notes.append(Note("tucker", f"{len(tucker)} sites have a Tucker core, which B · A holds multiplied out"))
    if reshaped := [site for builder in builders for site in builder.reshaped]:
        notes.append(
            Note(
                "reshaped-base",
                f"{len(reshaped)} sites are for a base weight padded with zeros to their shape",
                is_doubt=True,
            )
        )
    for site, update in sites.items():
        match = _FUSED.fullmatch(site)
        parts = 0 if match is None else 3 if match["stream"] == "double" else 4
        if split_parts(update, parts):
            notes.append(
                Note(
                    "fused-blocks",
                    f"up is block-diagonal in {parts} blocks: alpha may be meant for rank {update.rank // parts}, "
                    f"then the scale is {update.scale * parts:g} and not {update.scale:g}",
                    site,
                )
            )
    return notes


def write_flat(adapter: Adapter, path: Path, dtype: DTypeLike | None, kinds: Collection[str] = WRITES) -> None:
    """Write one file; an unedited adapter of the family is written as it was.

    alpha = scale · dim at every site. A LoKr with both factors whole has no alpha that counts: its scale goes into w1.
    The metadata list the sites under ``lorascope.sites``, since names lose their dots.

    Args:
        adapter: what to write.
        path: where.
        dtype: of the tensors, as stored if None; alphas keep theirs.
        kinds: the parametrisations that are kept; others of low rank are worked out.

    Raises:
        AdapterError: where a site is of a kind that such files have not, an embedding, transposed or has a bias that
            the scale multiplies, or two names become one.
        OutputError: where the file cannot be written.
    """
    is_own = adapter.provenance.format in FAMILY
    if is_unedited(adapter, FAMILY, dtype):
        write_units(path, units_of(adapter.original or {}), adapter.provenance.metadata)
        return
    if not adapter:
        raise AdapterError("an adapter without sites cannot be written to this format")
    check(flat_refusals(adapter, kinds))
    names = names_of(adapter)
    units: list[Unit] = [
        site_unit(site, _named_tensors, names[site], site, one, dtype, kinds) for site, one in adapter.items()
    ]
    kept = {key: text for key, text in adapter.provenance.metadata.items() if is_own and key != SITES_KEY}
    if is_own:
        units += units_of(adapter.leftovers)
    moved = {name: site for site, name in names.items() if name != site}
    write_units(path, units, kept | ({SITES_KEY: listed(moved)} if moved else {}))


def flat_refusals(adapter: Adapter, kinds: Collection[str] = WRITES) -> Iterator[AdapterError]:
    """An error for each site that such a file has no place for, beside the others that there are."""
    owner: dict[str, str] = {}
    for site, update in adapter.items():
        try:
            check_site(site, update, kinds)
            name = flattened(site)
        except AdapterError as error:
            yield at_site(error, site)
            continue
        if name in owner:
            yield AdapterError("two sites have one name without dots", key=site, found=f"{name} of {owner[name]}")
        owner.setdefault(name, site)


def check_site(site: str, update: Update, kinds: Collection[str] = WRITES) -> None:
    """Check that the family has a place for an update.

    Raises:
        AdapterError: naming the site.
    """
    if update.is_transposed or update.layer == "embedding":
        raise AdapterError("kohya files have no embeddings and no transposed layers", key=site)
    if update.bias is not None and not update.is_bias_whole:
        raise AdapterError("kohya files have no bias that the scale multiplies", key=site)
    update = outlined(update, kinds)
    inner = update.inner if isinstance(update, DoRA) else update
    is_held = isinstance(inner, LowRank) or inner.kind in ("locon", *_PREFIXES)
    if not is_held and not (inner is update and inner.kind == "full" and inner.scale == 1.0):
        raise AdapterError(
            "kohya files have no place for this kind of update",
            key=site,
            expected=", ".join(WRITES),
            found=inner.kind,
        )


def _named_tensors(
    name: str, site: str, update: Update, dtype: DTypeLike | None, kinds: Collection[str]
) -> dict[str, NDArray[Any]]:
    return {
        f"{name}.{suffix}": tensor if dtype is None or suffix == "alpha" else cast_to(tensor, dtype)
        for suffix, tensor in site_tensors(worked_out(update, kinds)).items()
    }


def site_tensors(update: Update) -> dict[str, NDArray[Any]]:
    """Suffix → tensor, alpha among them, of an update that ``check_site`` passes and that is worked out."""
    kind = update.kind
    if update.bias is not None and isinstance(update, LowRank | Expanded):
        return {**site_tensors(replace(update, bias=None)), "diff_b": update.bias}
    if isinstance(update, DoRA):
        return {**site_tensors(update.inner), "dora_scale": _dora_scale(update)}
    if isinstance(update, LowRank):
        up, down = convolution_factors(padded(update))
        return _scaled({"lora_down.weight": down, "lora_up.weight": up}, padded(update), "lora_up.weight")
    if kind == "full":
        suffixes = ("w_norm", "b_norm") if update.layer == "norm" else ("diff", "diff_b")
        return {
            suffix: update.stored[role]
            for suffix, role in zip(suffixes, ("diff", "diff_b"), strict=True)
            if role in update.stored
        }
    if kind == "locon":
        names = {"B": "lora_up.weight", "mid": "lora_mid.weight", "A": "lora_down.weight"}
        return _scaled({names[role]: tensor for role, tensor in update.stored.items()}, update, "lora_up.weight")
    tensors = {f"{_PREFIXES[kind]}{role}": _with_kernel(role, tensor, update) for role, tensor in update.stored.items()}
    first = next(name for name in ("hada_w1_a", "lokr_w1", "lokr_w1_a") if name in tensors)
    if {"lokr_w1", "lokr_w2"} <= set(tensors):
        return tensors | {first: _times(tensors[first], update.scale), "alpha": np.array(1.0, np.float32)}
    return _scaled(tensors, update, first)


def _with_kernel(role: str, tensor: NDArray[Any], update: Update) -> NDArray[Any]:
    """A Tucker core with one axis for each of the kernel's: PEFT has two of every kernel."""
    return tensor.reshape(*tensor.shape[:2], *update.kernel[1:]) if role.startswith("t") else tensor


def _scaled(tensors: dict[str, NDArray[Any]], update: Update, first: str) -> dict[str, NDArray[Any]]:
    """The tensors and an alpha with alpha / dim == scale where there is one; ``first`` is a factor of the product."""
    alpha = alpha_for(update, update.dim)
    if alpha == 0:  # in the file alpha 0 means "not stated"
        tensors, alpha = tensors | {first: np.zeros_like(tensors[first])}, float(update.dim)
    with np.errstate(over="ignore"):  # what is too large is written as float64
        is_exact = float(np.float32(alpha)) == alpha
    return {"alpha": np.array(alpha, np.float32 if is_exact else np.float64), **tensors}


def _times(tensor: NDArray[Any], scale: float) -> NDArray[Any]:
    """The product, in the dtype of the tensor where that is exact, else in float64."""
    if scale == 1.0:
        return tensor
    wide = wide_product(tensor, scale)
    with np.errstate(over="ignore"):  # what is too large stays wide
        narrow = wide.astype(tensor.dtype)
    return narrow if bool((narrow.astype(np.float64) == wide).all()) else wide


def _dora_scale(update: DoRA) -> NDArray[Any]:
    """The magnitude with one axis for each of the base weight's: [out, 1, …] or [1, channels, …]."""
    magnitude = update.stored["magnitude"]
    ones = (1,) * (len(update.kernel) - 1 if update.kernel else 0)
    if not update.kernel and magnitude.ndim > 2:  # the kernel is not known; the file's own shape is
        return magnitude
    return magnitude.reshape((1, -1, *ones) if update.axis == "in" else (-1, 1, *ones))
