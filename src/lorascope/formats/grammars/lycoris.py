"""LyCORIS: files of the kohya family that hold more than LoRA, under ``<name>.hada_w1_a``, ``.lokr_w1``, ``.diff`` ….

Every site is told from its own keys (``kohya_sites``), so one file may mix LoHa, LoKr, LoRA, full differences, norms.
Under ``rs_lora`` the stored alpha is multiplied by √dim already, and alpha/dim is right as it stands.

Source: https://github.com/KohakuBlueleaf/LyCORIS, lycoris/modules. The scale counts once: version 4.1.3 applies it
twice where it merges LoHa and LoKr, but not where it trains.
"""

from __future__ import annotations

import re
from pathlib import Path

from numpy.typing import DTypeLike

from lorascope.adapter import Adapter
from lorascope.formats.contents import Contents
from lorascope.formats.kohya_file import WRITES, flat_refusals, read_flat, write_flat
from lorascope.formats.kohya_names import SITES_KEY
from lorascope.formats.registry import SPECIFIC, Evidence, Format

_OWN = re.compile(
    r"[^.]+\.(hada_[wt][12](_[ab])?|lokr_(w[12](_[ab])?|t2)|oft_blocks|[wb]_norm|diff|diff_b|[ab][12]\.weight|on_input"
    r"|lambda_layer)"
)


def recognise_lycoris(contents: Contents) -> Evidence | None:
    """Keys of a LyCORIS kind after a name without dots; they beat the plain pairs that such files hold beside them."""
    key = next((key for key in contents.tensors if _OWN.fullmatch(key)), None)
    return None if key is None else Evidence(SPECIFIC + 10, f"keys such as {key[-80:]}")


def read_lycoris(contents: Contents) -> Adapter:
    """The adapter of a LyCORIS file.

    Raises:
        AdapterError: where a site's keys do not make one update.
    """
    return read_flat(contents, "lycoris")


def write_lycoris(adapter: Adapter, path: Path, dtype: DTypeLike | None) -> None:
    """Write one LyCORIS file, as ``write_flat``.

    Raises:
        AdapterError: where the format has no place for a site.
        OutputError: where the file cannot be written.
    """
    write_flat(adapter, path, dtype)


FORMATS = (
    Format(
        name="lycoris",
        title="LyCORIS",
        reference="https://github.com/KohakuBlueleaf/LyCORIS",
        recognise=recognise_lycoris,
        read=read_lycoris,
        write=write_lycoris,
        refusals=flat_refusals,
        needed_metadata=frozenset({SITES_KEY}),
        kinds=(
            "lora",
            "locon",
            "loha",
            "lokr",
            "dora",
            "full",
            "lycoris-oft",
            "lycoris-boft",
            "glora",
            "lycoris-ia3",
        ),
        writes=WRITES,
        files="`hada_…`, `lokr_…`, `diff`, `w_norm`, `oft_blocks`, `a1`…`b2`; names without dots",
    ),
)
