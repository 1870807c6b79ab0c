"""kohya sd-scripts: ``<name>.lora_down.weight``, ``.lora_up.weight``, ``.alpha``; no dots inside ``<name>``.

    ΔW = (alpha/rank) · up · down                      rank = rows of lora_down; alpha missing or 0: scale 1
    with lora_mid (Tucker, LoCon):  ΔW[i,j,k,l] = scale · Σ up[i,m] · mid[m,n,k,l] · down[n,j]
    with dora_scale: DoRA

Names are module paths with ``_`` for ``.``; ``kohya_names`` gives the paths back where they are known layers.

Source: https://github.com/kohya-ss/sd-scripts, networks/lora.py and networks/merge_lora.py.
"""

from __future__ import annotations

import re
from pathlib import Path

from numpy.typing import DTypeLike

from lorascope.adapter import Adapter
from lorascope.formats.contents import Contents
from lorascope.formats.kohya_file import flat_refusals, read_flat, write_flat
from lorascope.formats.kohya_names import SITES_KEY
from lorascope.formats.registry import SPECIFIC, Evidence, Format

_KEPT = ("lora", "locon", "dora")

_FACTOR = re.compile(r"[^.]+\.lora_(down|up|mid)\.weight")


def recognise_kohya(contents: Contents) -> Evidence | None:
    """Keys ``<name>.lora_down.weight`` with a name that has no dots."""
    if any(_FACTOR.fullmatch(key) for key in contents.tensors):
        return Evidence(SPECIFIC, "keys end lora_down.weight after a name without dots")
    return None


def read_kohya(contents: Contents) -> Adapter:
    """The adapter of a kohya file.

    Raises:
        AdapterError: where a pair is broken, an alpha is no number, or shapes do not fit.
    """
    return read_flat(contents, "kohya")


def write_kohya(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write one kohya file, as ``write_flat``.

    Raises:
        AdapterError: where the format has no place for a site.
        OutputError: where the file cannot be written.
    """
    write_flat(adapter, path, dtype, _KEPT)


FORMATS = (
    Format(
        name="kohya",
        title="kohya LoRA",
        reference="https://github.com/kohya-ss/sd-scripts",
        recognise=recognise_kohya,
        read=read_kohya,
        write=write_kohya,
        needed_metadata=frozenset({SITES_KEY}),
        refusals=lambda adapter: flat_refusals(adapter, _KEPT),
        kinds=_KEPT,
        writes=_KEPT,
        files="`lora_down`/`lora_up`/`alpha`, convolutions, `lora_mid`, `dora_scale`; names without dots",
    ),
)
