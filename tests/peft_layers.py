"""Layers with PEFT's adapters, and what PEFT makes of them: for the tests that compare files of its types with it."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.errors import AdapterError

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    gpt2 = pytest.importorskip("transformers.pytorch_utils")

DOUBLE = 1e-11
SINGLE = 1e-5
"""Relative to the largest entry of ΔW: what PEFT works out in float64, and where it goes through float32."""

SIZES: dict[str, tuple[int, int]] = {"wide": (12, 8), "tall": (8, 20), "square": (12, 12)}
ODD: dict[str, tuple[int, int]] = {"wide": (11, 7), "tall": (7, 13), "square": (9, 9)}


class Layers(torch.nn.Module):  # type: ignore[misc, name-defined]  # importorskip gives a module without types
    """Layers by name, none of which the forward pass of the whole needs."""

    def __init__(self, **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Any) -> Any:
        return x


def linear_layers(sizes: dict[str, tuple[int, int]]) -> Layers:
    torch.manual_seed(0)
    return Layers(**{name: torch.nn.Linear(*shape) for name, shape in sizes.items()})


def gpt2_layers(sizes: dict[str, tuple[int, int]]) -> Layers:
    torch.manual_seed(0)
    layers = {name: gpt2.Conv1D(out, in_) for name, (in_, out) in sizes.items()}
    for layer in layers.values():
        layer.weight.data = torch.randn(layer.weight.shape)
    return Layers(**layers)


def adapted(model: Layers, config: Any, *, spread: float = 0.5) -> Any:
    """The model with PEFT's adapter, every trained number random."""
    config.target_modules = [name for name, _ in model.named_children()]
    wrapped = peft.get_peft_model(model, config).double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    return wrapped


def merged_changes(wrapped: Any, model: Layers) -> dict[str, tuple[Any, Any, Any]]:
    """Site → weight before, weight after, what PEFT adds to it."""
    before = {name: layer.base_layer.weight.detach().clone() for name, layer in model.named_children()}
    merged = copy.deepcopy(wrapped).merge_and_unload()
    after = {name: layer.weight.detach() for name, layer in merged.named_children()}
    return {name: (before[name].numpy(), after[name].numpy(), (after[name] - before[name]).numpy()) for name in before}


def error(found: Any, expected: Any) -> float:
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 1e-4
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def saved(wrapped: Any, folder: Path) -> formats.Adapter:
    wrapped.save_pretrained(folder)
    return formats.read(folder)


def checked(wrapped: Any, model: Layers, folder: Path, tolerance: float, *, has_forward: bool = True) -> dict[str, Any]:
    """Compare every site with PEFT's merged weights and, for linear layers, with its forward pass; the updates."""
    # saved first: PEFT projects the stored tensors of some types as it merges them
    adapter = saved(wrapped, folder)
    changes = merged_changes(wrapped, model)
    assert set(adapter) == set(changes)
    worst = 0.0
    for site, (base, _, change) in changes.items():
        update: Any = adapter[site]
        worst = max(worst, error(update.delta_weight(np.float64, base=base), change))
        resolved = update.resolved(base.shape)
        assert resolved.base_shape == base.shape
        if update.needs != "base weight":
            assert resolved.norm() == pytest.approx(float(np.linalg.norm(change)), rel=10 * tolerance)
            assert resolved.rank >= np.linalg.matrix_rank(change, tol=1e-6 * np.abs(change).max())
        else:
            with pytest.raises(AdapterError, match="relative to the base weight"):
                update.delta_weight()
        if has_forward:
            layer = getattr(wrapped.base_model.model, site)
            in_ = resolved.shape[1]
            with torch.no_grad():
                run = layer(torch.eye(in_, dtype=torch.float64)) - layer(torch.zeros(1, in_, dtype=torch.float64))
            moved = base + update.delta_weight(np.float64, base=base)
            moved = moved if resolved.is_transposed else moved.T
            assert error(run.numpy(), moved) < tolerance
    assert worst < tolerance
    return dict(adapter)
