"""Merges of real adapters are taken apart among two hundred others of their zoo; checkpoints are told to be one run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lorascope import formats
from lorascope.compare import pairwise
from lorascope.merge import merge
from lorascope.retrieve import explain_merge, lineage

HOME = Path(os.environ.get("LORASCOPE_HOME") or Path.home() / ".cache" / "lorascope")
DIGITS = HOME / "learning-on-loras" / "digits" / "adapters"
ROOT = Path(
    os.environ.get("LORASCOPE_REAL_ADAPTERS") or Path(__file__).resolve().parents[2].parent / "shared" / "adapters"
)


@pytest.mark.skipif(not DIGITS.is_dir(), reason=f"no merges of the zoo were taken apart: {DIGITS} is not there")
def test_members_and_weights_among_two_hundred() -> None:
    paths = sorted(DIGITS.iterdir())[:200]
    others = [formats.read(path) for path in paths]
    for members, weights in (([3, 9], [0.5, 0.5]), ([2, 44, 6, 180, 10], [0.1, 0.3, 0.2, 0.15, 0.25])):
        merged = merge([others[k] for k in members], "linear", weights=weights, is_loss_allowed=True)
        found = explain_merge(merged.adapter, others, [path.name for path in paths])
        assert {part.place for part in found.parts} == set(members)
        # the merge is off by its rounding to float32, its weights by that over σ_min of the members
        gram = pairwise([others[k] for k in members]).gram
        room = merged.relative_error * found.norm / float(np.sqrt(np.linalg.eigvalsh(gram)[0])) + 1e-12
        assert room < 1e-6
        for part in found.parts:
            assert abs(part.weight - weights[members.index(part.place)]) <= room
        assert found.relative_rest <= 1.01 * merged.relative_error + 1e-12


@pytest.mark.skipif(not (ROOT / "INDEX.json").is_file(), reason=f"no real checkpoints: {ROOT} is not there")
def test_checkpoints_of_one_run() -> None:
    places = [
        "wyek1n+MLX-CLI/adapters/0000100_adapters.safetensors",
        "wyek1n+MLX-CLI/adapters/0000200_adapters.safetensors",
        "shibbir24+Smart-Review-AI/lora_adapter/checkpoint-2500",
        "shibbir24+Smart-Review-AI/lora_adapter",
        "johntnanney+gradience/examples/adapters/tiny_lora",
    ]
    edges = lineage([formats.read(ROOT / place) for place in places], places)
    told = {(edge.relation, edge.child, edge.parents) for edge in edges}
    assert told == {("continued", places[1], (places[0],)), ("continued", places[3], (places[2],))}
