"""Sam_LoRA: ``w_a_000`` [rank, in] and ``w_b_000`` [out, rank], q and v of the image encoder of Segment Anything.

    ΔW = w_b · w_a; the scale is 1

Number i belongs to block i/2: even numbers change the rows of q in the fused layer ``qkv`` (0 … out − 1), odd numbers
those of v (2 · out … 3 · out − 1), and so are the sites called: ``image_encoder.blocks.3.attn.qkv[0:768]``.

The trainer numbers the blocks that it adapts, which are all of them unless a script says otherwise; a file that has not
all blocks of one of the published encoders is in doubt.

Source: https://github.com/MathieuNlp/Sam_LoRA, src/lora.py; https://github.com/facebookresearch/segment-anything,
segment_anything/build_sam.py (the encoders) and modeling/image_encoder.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from numpy.typing import DTypeLike

from lorascope.adapter import Adapter, Note, Provenance, Update
from lorascope.adapter.site import path_and_part
from lorascope.errors import AdapterError
from lorascope.formats.contents import Contents
from lorascope.formats.notes import leftover_notes
from lorascope.formats.pairs import Halves
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.registry import SPECIFIC, Evidence, Format
from lorascope.formats.unscaled_file import Keys, unscaled_refusals, write_unscaled

_FACTOR = re.compile(r"w_(?P<half>[ab])_(?P<site>\d{3,6})", re.ASCII)
_SITE = re.compile(r"image_encoder\.blocks\.\d{1,6}\.attn\.qkv\[\d{1,12}:\d{1,12}\]", re.ASCII)
_BLOCKS: Mapping[int, int] = {768: 12, 1024: 24, 1280: 32}
"""Width → blocks of the published image encoders: ViT-B, ViT-L, ViT-H."""


def recognise_sam_lora(contents: Contents) -> Evidence | None:
    """Keys ``w_a_000`` and ``w_b_000``."""
    key = next((key for key in contents.tensors if _FACTOR.fullmatch(key)), None)
    return None if key is None else Evidence(SPECIFIC, f"keys such as {key}")


def read_sam_lora(contents: Contents) -> Adapter:
    """The adapter of a Sam_LoRA file.

    Raises:
        AdapterError: where a pair is broken, or two numbers are one.
    """
    halves, leftovers = Halves(), dict(contents.tensors)
    for key in contents.tensors:
        if match := _FACTOR.fullmatch(key):
            halves.add(str(int(match["site"])), "A" if match["half"] == "a" else "B", key)
            del leftovers[key]
    sites: dict[str, Update] = {}
    for number, (up, down) in halves.checked().items():
        tensors = {"B": contents.tensors[up], "A": contents.tensors[down]}
        update = built("lora", Parts(number, tensors, {"B": up, "A": down}))
        sites[_site(int(number), update.shape[0])] = update
    return Adapter(
        sites=sites,
        provenance=Provenance(format="sam-lora", kind="lora", path=contents.path, metadata=contents.metadata),
        leftovers=leftovers,
        notes=(*_number_notes(sites), *leftover_notes(leftovers, {})),
    )


def _site(number: int, rows: int) -> str:
    begin = 0 if number % 2 == 0 else 2 * rows
    return f"image_encoder.blocks.{number // 2}.attn.qkv[{begin}:{begin + rows}]"


def _number_notes(sites: Mapping[str, Update]) -> list[Note]:
    widths = {update.shape[1] for update in sites.values()}
    expected = 2 * _BLOCKS.get(widths.pop(), 0) if len(widths) == 1 else 0
    if len(sites) == expected:
        return []
    text = f"numbers are taken for all blocks from the first on, and {len(sites)} are those of no published encoder"
    return [Note("numbered-sites", text, is_doubt=True)]


def write_sam_lora(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write one file, as ``write_unscaled``.

    Raises:
        AdapterError: where a site is not q or v of a block, or one before it is missing.
        OutputError: where the file cannot be written.
    """
    write_unscaled(adapter, path, dtype, format="sam-lora", keys_of=_keys, number_of=_number)


def _number(site: str) -> tuple[str, int]:
    path, part = path_and_part(site)
    return "", 2 * int(path.split(".")[2]) + (part is not None and part.begin > 0)


def _keys(site: str, update: Update) -> Keys:
    if not _SITE.fullmatch(site) or site != _site(number := _number(site)[1], update.shape[0]):
        raise AdapterError(
            "Sam_LoRA's files hold q and v of the blocks of one model and nothing else",
            key=site,
            expected="a site such as image_encoder.blocks.0.attn.qkv[0:768], and its rows",
        )
    return Keys(f"w_b_{number:03d}", f"w_a_{number:03d}")


FORMATS = (
    Format(
        name="sam-lora",
        title="Sam_LoRA",
        reference="https://github.com/MathieuNlp/Sam_LoRA",
        recognise=recognise_sam_lora,
        read=read_sam_lora,
        write=write_sam_lora,
        refusals=partial(unscaled_refusals, keys_of=_keys, number_of=_number),
        names_rows=True,
        rows_of=lambda update: 3 * update.shape[0],
        kinds=("lora",),
        writes=("lora",),
        files="`w_a_000`/`w_b_000`",
    ),
)
