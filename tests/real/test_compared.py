"""Every pair of real adapter files of one base is compared, and copies of them are found to be copies."""

from __future__ import annotations

import json
import os
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lorascope import formats
from lorascope.adapter import Adapter
from lorascope.compare import compare, pairwise
from lorascope.symmetry.common_sites import CommonSites

ROOT = Path(
    os.environ.get("LORASCOPE_REAL_ADAPTERS") or Path(__file__).resolve().parents[2].parent / "shared" / "adapters"
)

if not (ROOT / "INDEX.json").is_file():
    pytest.skip(f"real adapters were not run: {ROOT} is not there", allow_module_level=True)

INDEX: dict[str, Any] = json.loads((ROOT / "INDEX.json").read_text())
PATHS = [entry["path"] for entry in INDEX["files"] if entry.get("first3")]


@cache
def read(path: str) -> Adapter:
    return formats.read(ROOT / path)


@cache
def shapes(path: str) -> dict[str, Any]:
    return {site: (update.shape, update.kernel) for site, update in read(path).items()}


def compatible() -> list[tuple[str, str]]:
    """Pairs with a site in common and no site of two shapes."""
    return [
        (one, two)
        for one, two in combinations(PATHS, 2)
        if (both := shapes(one).keys() & shapes(two).keys())
        and all(shapes(one)[site] == shapes(two)[site] for site in both)
    ]


def test_every_pair_of_one_base_compares() -> None:
    pairs = compatible()
    assert len(pairs) >= 20
    assert len({path for pair in pairs for path in pair}) >= 10
    distances: list[float] = []
    for one, two in pairs:
        sites = sorted(shapes(one).keys() & shapes(two).keys())
        is_wide = any(read(one)[site].rank > 64 for site in sites)  # LoKr, of which a few sites will do
        common = CommonSites.of([read(one), read(two)], is_any_base=True)
        found = pairwise(common, sites=sites[:4] if is_wide else sites)
        assert 0 <= found.relative_distance[0, 1] <= 2
        distances.append(float(found.relative_distance[0, 1]))
    assert sum(distance == 0 for distance in distances) == 3  # three files of untrained adapters, B = 0
    assert sum(0 < distance < 0.5 for distance in distances) == 2  # two runs with two checkpoints


def test_a_pair_in_full() -> None:
    first, *_ = [pair for pair in compatible() if "Sam_LoRA" in pair[0]]
    found = compare([read(path) for path in first], is_any_base=True)
    assert len(found.shared) == len(found.sites) == 24
    assert found.columns is not None and 0 <= found.columns.overlap <= 1
    assert found.spectrum_distance <= found.distance
