"""Small adapter files, written with the reference libraries and not with the code under test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

PREFIX = "base_model.model."


def factors(*sites: str, rank: int = 2, out: int = 5, in_: int = 4, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for site in sites:
        tensors[f"{PREFIX}{site}.lora_A.weight"] = rng.standard_normal((rank, in_)).astype(np.float32)
        tensors[f"{PREFIX}{site}.lora_B.weight"] = rng.standard_normal((out, rank)).astype(np.float32)
    return tensors


@pytest.fixture
def peft_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function: (tensors, configuration fields, metadata) → a PEFT folder; the configuration None: no file."""

    def write(
        tensors: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        *,
        metadata: dict[str, str] | None = None,
        has_config: bool = True,
        name: str = "adapter",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        safetensors.numpy.save_file(
            factors("q", "v") if tensors is None else tensors, folder / "adapter_model.safetensors", metadata
        )
        if has_config:
            text = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4} | (config or {}))
            (folder / "adapter_config.json").write_text(text)
        return folder

    return write


@pytest.fixture
def lora_factors() -> Callable[..., dict[str, Any]]:
    """The function that makes PEFT tensors for named sites."""
    return factors
