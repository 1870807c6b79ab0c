"""MLX updates against the arithmetic of mlx-lm, which runs on no machine of the test suite.

The functions are ``fuse`` of LoRALinear, LoRASwitchLinear, LoRAEmbedding, DoRALinear and DoRAEmbedding with NumPy in
place of MLX (https://github.com/ml-explore/mlx-lm, mlx_lm/tuner/lora.py and dora.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats

SCALE = 10.0
RNG = np.random.default_rng(1)


def fused_linear(weight: Any, lora_a: Any, lora_b: Any) -> Any:
    return weight + (SCALE * lora_b.T) @ lora_a.T


def fused_switch(weight: Any, lora_a: Any, lora_b: Any) -> Any:
    experts, _, in_ = weight.shape
    return weight + (SCALE * lora_b) @ lora_a.reshape(experts, -1, in_)


def fused_embedding(weight: Any, lora_a: Any, lora_b: Any) -> Any:
    return weight + (SCALE * lora_a) @ lora_b


def fused_dora_linear(weight: Any, lora_a: Any, lora_b: Any, m: Any) -> Any:
    weight = weight + (SCALE * lora_b.T) @ lora_a.T
    return (m / np.linalg.norm(weight, axis=1))[:, None] * weight


def fused_dora_embedding(weight: Any, lora_a: Any, lora_b: Any, m: Any) -> Any:
    weight = weight + (SCALE * lora_a) @ lora_b
    return (m / np.linalg.norm(weight, axis=1))[:, None] * weight


@pytest.mark.parametrize(
    ("fused", "site", "weight", "shapes"),
    [
        (fused_linear, "layers.0.q_proj", (6, 5), {"lora_a": (5, 3), "lora_b": (3, 6)}),
        (fused_linear, "layers.0.square", (5, 5), {"lora_a": (5, 3), "lora_b": (3, 5)}),
        (fused_switch, "layers.0.mlp.up", (2, 6, 5), {"lora_a": (2, 3, 5), "lora_b": (2, 6, 3)}),
        (fused_switch, "layers.0.mlp.down", (2, 6, 5), {"lora_a": (6, 5), "lora_b": (2, 6, 3)}),
        (fused_embedding, "model.embed_tokens", (7, 5), {"lora_a": (7, 3), "lora_b": (3, 5)}),
        (fused_dora_linear, "layers.0.q_proj", (6, 5), {"lora_a": (5, 3), "lora_b": (3, 6), "m": (6,)}),
        (fused_dora_linear, "layers.0.square", (5, 5), {"lora_a": (5, 3), "lora_b": (3, 5), "m": (5,)}),
        (fused_dora_embedding, "model.embed_tokens", (7, 5), {"lora_a": (7, 3), "lora_b": (3, 5), "m": (7,)}),
        (fused_dora_embedding, "model.embed_tokens", (5, 5), {"lora_a": (5, 3), "lora_b": (3, 5), "m": (5,)}),
    ],
)
def test_the_weight_after_the_update_is_that_of_fuse(
    tmp_path: Path, fused: Callable[..., Any], site: str, weight: tuple[int, ...], shapes: dict[str, tuple[int, ...]]
) -> None:
    tensors = {name: RNG.standard_normal(shape) for name, shape in shapes.items()}
    base = RNG.standard_normal(weight)
    safetensors.numpy.save_file(
        {f"{site}.{name}": value for name, value in tensors.items()}, tmp_path / "adapters.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"fine_tune_type": "dora" if "m" in tensors else "lora", "lora_parameters": {"scale": SCALE}})
    )
    adapter = formats.read(tmp_path)
    expected = fused(base, **tensors)
    if base.ndim == 3:
        result = np.stack([W + adapter[f"{site}[{e}]"].delta_weight(np.float64) for e, W in enumerate(base)])
    else:
        result = base + adapter[site].delta_weight(np.float64, base=base)
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)
