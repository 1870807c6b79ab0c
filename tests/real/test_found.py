"""Duplicates among real files and in a real zoo: each is found in other clothes, and no other is taken for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.retrieve import adapters_in, build_index, duplicates
from retrieve.variants import KINDS, stripped, variant, write_somehow

ROOT = Path(
    os.environ.get("LORASCOPE_REAL_ADAPTERS") or Path(__file__).resolve().parents[2].parent / "shared" / "adapters"
)
HOME = Path(os.environ.get("LORASCOPE_HOME") or Path.home() / ".cache" / "lorascope")
DIGITS = HOME / "learning-on-loras" / "digits" / "adapters"


def write_variant(adapter: Adapter, number: int, path: Path, *others: str) -> Path:
    """A variant of one of the kinds in turn, in PEFT where that holds it."""
    kind = KINDS[number % len(KINDS)]
    return write_somehow(variant(stripped(adapter), kind, np.random.default_rng(number)), path, ("peft", *others))


@pytest.mark.skipif(not DIGITS.is_dir(), reason=f"the zoo was not searched: {DIGITS} is not there")
def test_each_of_a_hundred_adapters_of_a_zoo_is_found_again_and_no_other(tmp_path: Path) -> None:
    originals = sorted(DIGITS.iterdir())[:100]
    for number, folder in enumerate(originals):
        write_variant(formats.read(folder), number, tmp_path / f"v{number:03d}")
    index = build_index(adapters_in([*originals, tmp_path])).index
    found = duplicates(index)
    expected = {frozenset((str(folder), str(tmp_path / f"v{n:03d}"))) for n, folder in enumerate(originals)}
    assert {frozenset(one.entry.path for one in group) for group in found.groups} == expected
    assert found.candidates == 100 and not found.unread


@pytest.mark.skipif(not (ROOT / "INDEX.json").is_file(), reason=f"real adapters were not searched: {ROOT} is not there")
@pytest.mark.parametrize("has_lokr", [False, pytest.param(True, marks=pytest.mark.full)])
def test_each_real_adapter_is_found_again_and_no_other(tmp_path: Path, has_lokr: bool) -> None:
    index: dict[str, Any] = json.loads((ROOT / "INDEX.json").read_text())
    zero = frozenset(str(ROOT / "MathieuNlp+Sam_LoRA" / place) for place in ("@3c3bbb04", "@ad4cb56c", "@fd303749"))
    expected: set[frozenset[str]] = set()
    sources: list[Path] = []
    for number, entry in enumerate(entry for entry in index["files"] if entry.get("first3")):
        path = ROOT / entry["path"]
        if "lokr" in path.name and not has_lokr:  # 350 large sites
            continue
        adapter = formats.read(path)
        sources.append(path)
        if any(str(path).startswith(place) for place in zero):
            continue
        copy = tmp_path / f"v{number:03d}"
        if all(isinstance(update, LowRank) for update in adapter.values()):
            copy = write_variant(adapter, number, copy, adapter.provenance.format, "loralib")
        else:
            copy = tmp_path / f"v{number:03d}{path.suffix}"
            shutil.copy(path, copy)
            if (path.parent / "adapter_config.json").is_file():
                copy = tmp_path / f"v{number:03d}"
                shutil.copytree(path.parent, copy)
        expected.add(frozenset((str(path), str(copy))))
    found = duplicates(build_index(adapters_in([*sources, tmp_path])).index)
    groups = {frozenset(one.entry.path for one in group) for group in found.groups}
    untrained = [group for group in groups if all(any(one.startswith(z) for z in zero) for one in group)]
    assert [len(group) for group in untrained] == [3]
    assert groups - set(untrained) == expected
