"""The checkpoints of a run as one list, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.errors import AdapterError

Folder = Callable[..., Path]


def run(peft_folder: Folder, tmp_path: Path) -> Path:
    for step in (100, 90, 1000):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)
        peft_folder(config={"lora_alpha": step}, name=f"run/checkpoint-{step}")
    return tmp_path / "run"


def test_checkpoints_come_in_the_order_of_their_steps(peft_folder: Folder, tmp_path: Path) -> None:
    series = formats.read_series(run(peft_folder, tmp_path))
    assert series.steps == [90, 100, 1000] and len(series) == 3
    assert [(step, adapter["q"].scale) for step, adapter in series] == [(90, 45.0), (100, 50.0), (1000, 500.0)]
    assert series[-1][0] == 1000 and [step for step, _ in series[1:]] == [100, 1000]
    assert series.errors == {}


def test_a_broken_checkpoint_is_one_error_and_the_others_go_on(peft_folder: Folder, tmp_path: Path) -> None:
    folder = run(peft_folder, tmp_path)
    broken = folder / "checkpoint-100"
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    (folder / "checkpoint-95").mkdir()
    (folder / "checkpoint-x").mkdir()
    (folder / "checkpoint-7").write_bytes(b"no folder")
    series = formats.read_series(folder)
    assert [step for step, _ in series] == [90, 1000]
    assert [step for step, _ in series] == [90, 1000]
    assert [path.name for path in series.errors] == ["checkpoint-95", "checkpoint-100"]
    assert "truncated" in str(series.errors[broken])
    with pytest.raises(AdapterError, match="truncated"):
        series[2]


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    assert formats.read_series(tmp_path).steps == [5]


def test_numbered_files_of_mlx_with_their_configuration(tmp_path: Path) -> None:
    a, b = np.ones((4, 2), np.float32), np.ones((2, 5), np.float32)
    for name in ("0000200_adapters", "0000100_adapters", "adapters"):
        safetensors.numpy.save_file({"q.lora_a": a, "q.lora_b": b}, tmp_path / f"{name}.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_parameters": {"scale": 3}}')
    series = formats.read_series(tmp_path)
    assert [(step, adapter["q"].scale) for step, adapter in series] == [(100, 3.0), (200, 3.0)]


def test_a_folder_without_checkpoints_is_told(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no checkpoints"):
        formats.read_series(tmp_path)
    with pytest.raises(AdapterError, match="no such folder"):
        formats.read_series(tmp_path / "nowhere")
