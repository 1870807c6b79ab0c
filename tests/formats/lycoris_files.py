"""Tensors of LyCORIS files, made up, and the files that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

RNG = np.random.default_rng(0)


def draw(*shape: int) -> Any:
    return RNG.standard_normal(shape)


def saved(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    safetensors.numpy.save_file({key: np.asarray(value) for key, value in tensors.items()}, path, metadata)
    return path


def under(name: str, **tensors: Any) -> dict[str, Any]:
    return {f"{name}.{suffix.replace('__', '.')}": tensor for suffix, tensor in tensors.items()}


W: dict[str, Any] = {"lokr_w1": draw(2, 2), "lokr_w2": draw(4, 4)}
"""A LoKr of two whole factors."""
