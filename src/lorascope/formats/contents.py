"""``Contents``: what a weights file and the configuration beside it hold, before anyone says what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]
"""Tensors under their own names; views of the file where the container allows it."""


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one weights file in the dtype of the file, and the strings stored beside them.

    ``container`` is ``safetensors``, ``pickle``, ``npz`` or ``gguf``. The tensors of a pickled list are called ``[0]``,
    ``[1]``, and so on.
    """

    tensors: Tensors
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    container: str = "safetensors"


@dataclass(frozen=True)
class Contents:
    """All that a key grammar may look at: tensors, metadata, configuration and where they came from.

    ``config`` is None where no configuration lies beside the weights; ``config_text`` is it letter by letter.
    ``base_config`` is what the caller knows of the base model's ``config.json``; no reader looks for it.
    """

    tensors: Tensors
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    config: Mapping[str, Any] | None = None
    config_text: str | None = None
    path: Path | None = None
    container: str = "safetensors"
    base_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
