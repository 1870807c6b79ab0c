"""``decompress``: the adapters of a pack as files, each under its own name in one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lorascope.compress.pack import Pack
from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats import write, written_format
from lorascope.formats.numbered_sites import nameless
from lorascope.formats.output_file import written_folder
from lorascope.formats.output_name import check_folder

FREE_GROWTH = 1 << 30
"""Bytes of adapters that are no growth to speak of."""

MAX_GROWTH = 64
"""How many times larger than the pack its adapters may be."""


def decompress(
    pack: Pack,
    output: Path,
    *,
    only: Sequence[str] = (),
    to: str = "peft",
    dtype: DTypeLike = np.float32,
    is_growth_allowed: bool = False,
    is_overwritten: bool = False,
    advance: Callable[[int], Any] | None = None,
) -> list[Path]:
    """Write the adapters of a pack, one in memory at a time, all of them or none; the paths written.

    Args:
        pack: as ``read_pack`` gives it.
        output: a folder that is not there yet, or is empty.
        only: the names of the adapters to write, all by default.
        to: the format.
        dtype: of the factors.
        is_growth_allowed: write adapters that are more than ``MAX_GROWTH`` times as large as the pack.
        is_overwritten: replace a folder with no other files than are written.
        advance: called with the number of adapters done.

    Raises:
        LorascopeError: where the pack has no adapter of such a name.
        AdapterError: where they would be absurdly large, or their sites are numbers and the format has names.
        OutputError: where the folder is not empty, or cannot be written.
    """
    names = [member.name for member in pack.members]
    if unknown := sorted(set(only) - set(names)):
        raise LorascopeError("the pack has no such adapter", key=unknown[0], expected=", ".join(names[:5]))
    chosen = [number for number, name in enumerate(names) if not only or name in only]
    if not is_growth_allowed:
        _check_growth(pack, chosen)
    member = written_format(to)
    if (text := nameless([site.name for site in pack.sites], member)) is not None:
        hint = "choose the format that they are from: --to cloneofsimo or cloneofsimo-list"
        raise AdapterError("no model has layers of these names", found=text, hint=hint)
    files = [names[number] + ("" if member.is_folder else member.suffix) for number in chosen]
    inside = [f"{file}/{one}" for file in files for one in member.folder_files] if member.is_folder else files
    check_folder(output, inside, is_overwritten=is_overwritten)
    with written_folder(output, is_replaced=is_overwritten) as folder:
        for number, file in zip(chosen, files, strict=True):
            write(pack.unpacked(number), folder / file, format=to, dtype=dtype)
            if advance is not None:
                advance(1)
    return [output / file for file in files]


def _check_growth(pack: Pack, chosen: Sequence[int]) -> None:
    before = sum(tensor.nbytes for tensor in pack.tensors.values())
    after = 0
    for number in chosen:
        member = pack.members[number]
        for place, rank in enumerate(member.ranks):
            width = pack.width(member, place)
            after += 4 * sum(pack.sites[place].shape) * (rank and max(rank, *(width or (0,))))
    if after > max(FREE_GROWTH, MAX_GROWTH * before):
        raise AdapterError(
            f"the adapters would be {after // max(before, 1)} times as large as the pack",
            expected=f"at most {MAX_GROWTH} times",
            found=f"{before / 1e6:,.1f} MB packed, {after / 1e6:,.1f} MB unpacked",
            hint="take out some with --only, or accept the size with --allow-growth (is_growth_allowed=True)",
            code="too-large",
        )
