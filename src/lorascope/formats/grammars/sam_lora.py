"""Sam_LoRA: ``w_a_000`` [rank, in] and ``w_b_000`` [out, rank], q and v of the image encoder of Segment Anything.

    ΔW = w_b · w_a; the scale is 1

Number i belongs to block i/2: even numbers change the rows of q in the fused layer ``qkv`` (0 … out − 1), odd numbers
those of v (2 · out … 3 · out − 1). The sites are the numbers, as each is a part of a layer and not a layer.

Source: https://github.com/MathieuNlp/Sam_LoRA, src/lora.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from numpy.typing import DTypeLike

from lorascope.adapter import Adapter, Note, Provenance, Update
from lorascope.errors import AdapterError
from lorascope.formats.contents import Contents
from lorascope.formats.notes import leftover_notes
from lorascope.formats.pairs import Halves
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.registry import SPECIFIC, Evidence, Format
from lorascope.formats.unscaled_file import Keys, numbered, write_unscaled

_FACTOR = re.compile(r"w_(?P<half>[ab])_(?P<site>\d{3,6})")
_SITE = re.compile(r"\d{3,6}")
_PARTS = Note(
    "fused-parts",
    "site i is q (i even) or v (i odd) of the fused qkv of block i/2 of the image encoder",
    is_decided=True,
)


def recognise_sam_lora(contents: Contents) -> Evidence | None:
    """Keys ``w_a_000`` and ``w_b_000``."""
    key = next((key for key in contents.tensors if _FACTOR.fullmatch(key)), None)
    return None if key is None else Evidence(SPECIFIC, f"keys such as {key}")


def read_sam_lora(contents: Contents) -> Adapter:
    """The adapter of a Sam_LoRA file.

    Raises:
        AdapterError: where a pair is broken.
    """
    halves, leftovers = Halves(), dict(contents.tensors)
    for key in contents.tensors:
        if match := _FACTOR.fullmatch(key):
            halves.add(match["site"], "A" if match["half"] == "a" else "B", key)
            del leftovers[key]
    sites: dict[str, Update] = {}
    for site, (up, down) in halves.checked().items():
        tensors = {"B": contents.tensors[up], "A": contents.tensors[down]}
        sites[site] = built("lora", Parts(site, tensors, {"B": up, "A": down}))
    return Adapter(
        sites=sites,
        provenance=Provenance(format="sam-lora", kind="lora", path=contents.path, metadata=contents.metadata),
        leftovers=leftovers,
        notes=(_PARTS, *leftover_notes(leftovers, {})),
    )


def write_sam_lora(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write one file, as ``write_unscaled``.

    Raises:
        AdapterError: where a site is no number, or a number is missing.
        OutputError: where the file cannot be written.
    """

    def metadata_of(sites: Mapping[str, Update]) -> dict[str, str]:
        numbered(sites, lambda site: ("", int(site)))
        return {}

    write_unscaled(adapter, path, dtype, format="sam-lora", keys_of=_keys, metadata_of=metadata_of)


def _keys(site: str, update: Update) -> Keys:
    if not _SITE.fullmatch(site):
        raise AdapterError(
            "Sam_LoRA's files number q and v of the blocks of one model and have no other names",
            key=site,
            expected="a site such as 000",
        )
    return Keys(f"w_b_{site}", f"w_a_{site}")


FORMATS = (
    Format(
        name="sam-lora",
        title="Sam_LoRA",
        reference="https://github.com/MathieuNlp/Sam_LoRA",
        recognise=recognise_sam_lora,
        read=read_sam_lora,
        write=write_sam_lora,
        kinds=("lora",),
        writes=("lora",),
        site_examples=("000",),
        files="`w_a_000`/`w_b_000`",
    ),
)
