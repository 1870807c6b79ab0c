"""cloneofsimo's lora: numbered layers, in safetensors as ``unet:0:up`` and in pickles as a list up, down, up, down.

    ΔW = up · down            up [out, rank]   down [rank, in]; convolutions in their own shapes; the scale is 1

The layers are numbered in the order in which the trainer walked through the model; no file names them, so sites are
``unet:0`` … and, in a list, ``0000`` … Beside them lie learned token embeddings, ``<s1>``. A file of tokens alone is
told as such.

Only sites with such numbers are written: which layer a number stands for depends on the classes of modules that the
trainer replaced. Their names are metadata that the library asks for; where they are not known, they are its defaults.

Source: https://github.com/cloneofsimo/lora, lora_diffusion/lora.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, Note, Provenance, Update
from lorascope.errors import AdapterError
from lorascope.formats.contents import Contents, Tensors
from lorascope.formats.folding import unscaled
from lorascope.formats.notes import leftover_notes
from lorascope.formats.pairs import Halves, convolution_factors
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.pickle_output import SUFFIXES, write_pickle
from lorascope.formats.refusals import at_site, check
from lorascope.formats.registry import PLAIN, SPECIFIC, Evidence, Format
from lorascope.formats.unedited_file import is_unedited
from lorascope.formats.unscaled_file import Keys, plain_update, unscaled_refusals, write_unscaled

_SITE = re.compile(r"[^:]+:\d{1,9}", re.DOTALL | re.ASCII)
_FACTOR = re.compile(r"(?P<site>[^:]+:\d+):(?P<half>up|down)", re.DOTALL)
_NUMBER = re.compile(r"\d{4,9}", re.ASCII)
_ITEM = re.compile(r"\[(?P<index>\d+)\]")
_TOKEN = re.compile(r"<[^<>]+>", re.DOTALL)
_CLASSES: Mapping[str, tuple[str, ...]] = {
    "unet": ("CrossAttention", "Attention", "GEGLU"),
    "text_encoder": ("CLIPAttention",),
}
_NUMBERED = Note("numbered-sites", "sites are numbered in the trainer's order of the layers; the file names none")


def recognise_cloneofsimo(contents: Contents) -> Evidence | None:
    """Keys ``unet:0:up``; or nothing but learned tokens."""
    key = next((key for key in contents.tensors if _FACTOR.fullmatch(key)), None)
    if key is not None:
        return Evidence(SPECIFIC, f"keys such as {key[-80:]}")
    if contents.tensors and all(_TOKEN.fullmatch(key) and item.ndim == 1 for key, item in contents.tensors.items()):
        return Evidence(PLAIN, "learned token embeddings")
    return None


def read_cloneofsimo(contents: Contents) -> Adapter:
    """The adapter of a file with names.

    Raises:
        AdapterError: where a pair is broken, or the file holds learned tokens only.
    """
    halves, leftovers = Halves(), dict(contents.tensors)
    for key in contents.tensors:
        if match := _FACTOR.fullmatch(key):
            halves.add(match["site"], "A" if match["half"] == "down" else "B", key)
            del leftovers[key]
    if not halves:
        raise AdapterError(f"no LoRA tensors in this file ({_tokens(leftovers)})")
    sites = {site: _update(site, contents.tensors, *keys) for site, keys in halves.checked().items()}
    tokens = {key: item for key, item in leftovers.items() if _TOKEN.fullmatch(key) and item.ndim == 1}
    notes = [_NUMBERED]
    if tokens:
        notes.append(Note("saved-tokens", f"{_tokens(tokens)}, kept untouched"))
    notes += leftover_notes([key for key in leftovers if key not in tokens], {})
    return _adapter("cloneofsimo", contents, sites, leftovers, notes)


def _tokens(tokens: Tensors) -> str:
    shown = ", ".join(key[:80] for key in list(tokens)[:3]) + ", …" * (len(tokens) > 3)
    count = f"{len(tokens)} learned token embedding{'s' * (len(tokens) > 1)}"
    sizes = "/".join(str(size) for size in sorted({item.size for item in tokens.values()}))
    return f"{count} {shown}, {sizes} values{' each' * (len(tokens) > 1)}"


def recognise_list(contents: Contents) -> Evidence | None:
    """A pickled list."""
    if contents.container == "pickle" and contents.tensors and all(_ITEM.fullmatch(key) for key in contents.tensors):
        return Evidence(SPECIFIC, "a list of tensors without names")
    return None


def read_list(contents: Contents) -> Adapter:
    """The adapter of a pickled list: up, down, up, down …

    Raises:
        AdapterError: where the list is odd, or two neighbours do not make a product.
    """
    keys = list(contents.tensors)
    if len(keys) % 2:
        raise AdapterError("a list of LoRA tensors has an up for each down", found=f"{len(keys)} tensors")
    pairs = {f"{index:04d}": (keys[2 * index], keys[2 * index + 1]) for index in range(len(keys) // 2)}
    sites = {site: _update(site, contents.tensors, *pair) for site, pair in pairs.items()}
    return _adapter("cloneofsimo-list", contents, sites, {}, [_NUMBERED])


def _update(site: str, tensors: Tensors, up: str, down: str) -> Update:
    return built("lora", Parts(site, {"B": tensors[up], "A": tensors[down]}, {"B": up, "A": down}))


def _adapter(
    name: str, contents: Contents, sites: Mapping[str, Update], leftovers: Tensors, notes: Sequence[Note]
) -> Adapter:
    return Adapter(
        sites=sites,
        provenance=Provenance(format=name, kind="lora", path=contents.path, metadata=contents.metadata),
        leftovers=leftovers,
        notes=tuple(notes),
    )


def write_cloneofsimo(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write one file with names, numbers and ranks, as ``write_unscaled``.

    Raises:
        AdapterError: where a site is no number of a component, or a number is missing.
        OutputError: where the file cannot be written.
    """
    own: Mapping[str, str] = adapter.provenance.metadata if adapter.provenance.format == "cloneofsimo" else {}

    def metadata_of(sites: Mapping[str, Update]) -> dict[str, str]:
        components = {site.rpartition(":")[0] for site in sites}
        classes = {name: json.dumps(_CLASSES[name]) for name in sorted(components & set(_CLASSES)) if name not in own}
        return classes | {f"{site}:rank": str(max(update.rank, 1)) for site, update in sites.items()}

    write_unscaled(
        adapter,
        path,
        dtype,
        format="cloneofsimo",
        keys_of=_keys,
        has_convolutions=True,
        number_of=_number,
        metadata_of=metadata_of,
    )


def _number(site: str) -> tuple[str, int]:
    component, _, number = site.rpartition(":")
    return component, int(number)


def _keys(site: str, update: Update) -> Keys:
    if not _SITE.fullmatch(site):
        raise AdapterError(
            "cloneofsimo's files number their layers in the order of the trainer and have no names",
            key=site,
            expected="a site such as unet:0",
        )
    return Keys(f"{site}:up", f"{site}:down")


def write_list(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write a pickled list: up, down, up, down … with the scale in up.

    Raises:
        AdapterError: where a site is no number, a number is missing, or the suffix is none of PyTorch's.
        MissingExtraError: where PyTorch is not installed.
        OutputError: where the file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise AdapterError(
            "a list of tensors is a pickled file, which PyTorch tells by its suffix",
            expected=", ".join(SUFFIXES),
            found=path.suffix or "none",
        )
    if is_unedited(adapter, ("cloneofsimo-list",), dtype):
        write_pickle(path, list((adapter.original or {}).values()))
        return
    if not adapter:
        raise AdapterError("an adapter without sites cannot be written to this format")
    check(list_refusals(adapter))
    tensors: list[NDArray[Any]] = []
    for site in sorted(adapter, key=int):
        try:
            tensors += convolution_factors(unscaled(plain_update(adapter[site]), dtype))
        except AdapterError as error:
            raise at_site(error, site) from error
    write_pickle(path, tensors)


def list_refusals(adapter: Adapter) -> Iterator[AdapterError]:
    """An error for each site that a list has no place for, beside the others that there are."""
    return unscaled_refusals(adapter, keys_of=_item, has_convolutions=True, number_of=lambda site: ("", int(site)))


def _item(site: str, update: Update) -> Keys:
    if not _NUMBER.fullmatch(site):
        raise AdapterError("a list of tensors has numbers and no names", key=site, expected="a site such as 0000")
    return Keys(f"[{2 * int(site)}]", f"[{2 * int(site) + 1}]")


FORMATS = (
    Format(
        name="cloneofsimo",
        title="cloneofsimo LoRA",
        reference="https://github.com/cloneofsimo/lora",
        recognise=recognise_cloneofsimo,
        read=read_cloneofsimo,
        write=write_cloneofsimo,
        refusals=partial(unscaled_refusals, keys_of=_keys, has_convolutions=True, number_of=_number),
        kinds=("lora",),
        writes=("lora",),
        needed_metadata=frozenset(
            {*_CLASSES, *(f"{name}:{number}:rank" for name in _CLASSES for number in range(1000))}
        ),
        is_numbered=True,
        site_examples=("unet:0", "text_encoder:0"),
        files="`unet:0:up`/`unet:0:down`, with learned tokens",
    ),
    Format(
        name="cloneofsimo-list",
        title="cloneofsimo list of tensors",
        reference="https://github.com/cloneofsimo/lora",
        recognise=recognise_list,
        read=read_list,
        write=write_list,
        refusals=list_refusals,
        suffix=".pt",
        other_suffixes=SUFFIXES,
        kinds=("lora",),
        writes=("lora",),
        is_numbered=True,
        site_examples=("0000",),
        files="`.pt` lists: up, down, up, down …",
    ),
)
