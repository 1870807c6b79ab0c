"""Every real LoRA file to half of its rank, and the error that is reported against what was written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from lorascope import formats
from lorascope.compress import resize
from lorascope.conversion import convert
from lorascope.conversion.loss import error_of
from lorascope.symmetry.truncation import Cut

ROOT = Path(
    os.environ.get("LORASCOPE_REAL_ADAPTERS") or Path(__file__).resolve().parents[2].parent / "shared" / "adapters"
)
if not (ROOT / "INDEX.json").is_file():
    pytest.skip(f"real adapters were not run: {ROOT} is not there", allow_module_level=True)

FILES: list[dict[str, Any]] = [one for one in json.loads((ROOT / "INDEX.json").read_text())["files"] if "first3" in one]


# a LoKr of rank 16 has factors of rank 256 and is compared with in full
CASES = [
    pytest.param(one, id=one["path"], marks=[pytest.mark.full] if one["path"].endswith("16_lokr.safetensors") else [])
    for one in FILES
    if one["first3"]
]


@pytest.mark.parametrize("entry", CASES)
def test_half_of_the_rank(entry: dict[str, Any], tmp_path: Path) -> None:
    is_unstated = entry["scale_source"].startswith("NOT in the file")
    adapter = formats.read(ROOT / entry["path"], scale=entry["scales"][0] if is_unstated else None)
    half = max(1, max(update.dim for update in adapter.values()) // 2)
    small = resize(adapter, Cut(rank=half))
    writers = {one.name: one for one in formats.formats() if one.write and "lora" in one.writes}
    member = writers.get(adapter.provenance.format, writers["peft"])
    target = tmp_path / ("out" + ("" if member.is_folder else member.suffix))
    assert convert(small.adapter, target, to=member.name).lost == ()
    written = formats.read(target)
    assert set(written) == set(adapter) and max(update.rank for update in written.values()) <= half
    assert set(written.leftovers) == set(adapter.leftovers)
    measured = [error_of(update, written[site]) for site, update in adapter.items()]
    norm = math.hypot(*(own for _, own in measured))
    assert math.hypot(*(error for error, _ in measured)) == pytest.approx(small.relative_error * norm, rel=1e-6)
    for (error, own), site in zip(measured, adapter, strict=True):
        assert small.sites[site].error == pytest.approx(error, rel=1e-6, abs=1e-9 * own)
        spectrum = adapter[site].spectrum() if min(adapter[site].shape) < 400 or half > adapter[site].dim else None
        if spectrum is not None:  # no matrix of that rank is nearer
            assert error >= math.hypot(*spectrum[half:]) * (1 - 1e-9) - 1e-9 * own
