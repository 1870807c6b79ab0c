"""cloneofsimo's lora: numbered layers, in safetensors as ``unet:0:up`` and in pickles as a list up, down, up, down.

    ΔW = up · down            up [out, rank]   down [rank, in]; convolutions in their own shapes; the scale is 1

The layers are numbered in the order in which the trainer walked through the model; no file names them, so sites are
``unet:0`` … and, in a list, ``0000`` … Beside them lie learned token embeddings, ``<s1>``. A file of tokens alone is
told as such.

Source: https://github.com/cloneofsimo/lora, lora_diffusion/lora.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lorascope.adapter import Adapter, Note, Provenance, Update
from lorascope.errors import AdapterError
from lorascope.formats.contents import Contents, Tensors
from lorascope.formats.notes import leftover_notes
from lorascope.formats.pairs import Halves
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.registry import PLAIN, SPECIFIC, Evidence, Format
from lorascope.formats.unedited_file import unedited

_FACTOR = re.compile(r"(?P<site>[^:]+:\d+):(?P<half>up|down)", re.DOTALL)
_ITEM = re.compile(r"\[(?P<index>\d+)\]")
_TOKEN = re.compile(r"<[^<>]+>", re.DOTALL)
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


FORMATS = (
    Format(
        name="cloneofsimo",
        title="cloneofsimo LoRA",
        reference="https://github.com/cloneofsimo/lora",
        recognise=recognise_cloneofsimo,
        read=read_cloneofsimo,
        write=unedited("cloneofsimo"),
        kinds=("lora",),
        files="`unet:0:up`/`unet:0:down`, with learned tokens",
    ),
    Format(
        name="cloneofsimo-list",
        title="cloneofsimo list of tensors",
        reference="https://github.com/cloneofsimo/lora",
        recognise=recognise_list,
        read=read_list,
        kinds=("lora",),
        files="`.pt` lists: up, down, up, down …",
    ),
)
