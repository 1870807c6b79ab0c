"""A conversion never falls on its own source."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.conversion import convert
from lorascope.errors import OutputError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    update = LowRank(np.ones((4, 2), np.float32), np.ones((2, 3), np.float32))
    formats.write(Adapter({"model.q": update}), tmp_path / "tree" / "lora")
    return tmp_path / "tree" / "lora"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("read_from", "target", "to"),
    [
        ("lora", "lora/adapter_model.safetensors", "kohya"),
        ("lora", "lora/new.safetensors", "kohya"),
        ("lora", "lora/adapter_config.json", "kohya"),
        ("lora", "lora", "peft"),
        ("lora", "lora/inner", "peft"),
        ("lora", ".", "mlx"),
        ("lora/adapter_model.safetensors", "lora/adapter_model.safetensors", "kohya"),
        ("lora/adapter_model.safetensors", "lora/adapter_config.json", "kohya"),
        ("lora/adapter_model.safetensors", "lora", "peft"),
        ("lora", "other/../lora/adapter_model.safetensors", "kohya"),
    ],
)
def test_a_target_on_the_source_is_refused(source: Path, read_from: str, target: str, to: str) -> None:
    tree = source.parent
    (tree / "other").mkdir()
    before = contents(tree)
    with pytest.raises(OutputError, match=r"the source|not empty"):
        convert(tree / read_from, tree / target, to=to)
    assert contents(tree) == before


def test_another_name_of_the_source_is_the_source(source: Path) -> None:
    weights = source / "adapter_model.safetensors"
    (source.parent / "linked").symlink_to(source)
    os.link(weights, source.parent / "hard.safetensors")
    before = contents(source)
    for target in ("linked/adapter_model.safetensors", "hard.safetensors"):
        with pytest.raises(OutputError, match="the source"):
            convert(source, source.parent / target, to="kohya")
    with pytest.raises(OutputError, match="the source itself"):
        convert(formats.read(source), weights, to="kohya")
    assert contents(source) == before


def test_a_target_beside_the_source_is_written(source: Path) -> None:
    assert convert(source, source.parent / "a.safetensors", to="kohya").sites == 1
    assert convert(source.parent / "a.safetensors", source.parent / "b.safetensors", to="kohya").sites == 1
    assert convert(source.parent / "b.safetensors", source.parent / "lora2", to="peft").sites == 1
