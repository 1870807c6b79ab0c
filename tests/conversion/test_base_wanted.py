"""Where the base would settle what is open, the hint names it before it speaks of losses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from lorascope.conversion import convert
from lorascope.errors import AdapterError


def test_vera_without_its_base_asks_for_the_base_first(tmp_path: Path) -> None:
    ones = {"lambda_b": np.ones(4, np.float32), "lambda_d": np.ones(2, np.float32)}
    tensors = {f"base_model.model.q.vera_{name}": value for name, value in ones.items()}
    tensors |= {"base_model.vera_A": np.ones((2, 3), np.float32), "base_model.vera_B": np.ones((4, 2), np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "VERA", "r": 2, "target_modules": ["q"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError) as caught:
        convert(tmp_path, tmp_path.parent / f"{tmp_path.name}.safetensors", to="kohya")
    hint = caught.value.hint or ""
    assert hint.startswith("give the base") and hint.index("--base") < hint.index("--allow-loss"), caught.value
