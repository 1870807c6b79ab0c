"""What PEFT's types near LoRA are compared by: small models, random adapters, and what a merge makes of both."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, Expanded
from peft_layers import Layers

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    gpt2 = pytest.importorskip("transformers.pytorch_utils")

DOUBLE = 1e-11
"""Relative to the largest entry of ΔW: PEFT works all of these out in float64."""

Make = Callable[[], Layers]


def linears() -> Layers:
    return Layers(wide=torch.nn.Linear(12, 8), tall=torch.nn.Linear(8, 20), square=torch.nn.Linear(16, 16))


def convolutions() -> Layers:
    return Layers(two=torch.nn.Conv2d(8, 12, (3, 2)), point=torch.nn.Conv2d(6, 8, 1))


def conv1d() -> Layers:
    return Layers(one=torch.nn.Conv1d(8, 12, 3))


def gpt2_layers() -> Layers:
    layers = Layers(wide=gpt2.Conv1D(8, 12), square=gpt2.Conv1D(16, 16))
    for layer in layers.children():
        layer.weight.data = torch.randn(layer.weight.shape)
        layer.bias.data = torch.randn(layer.bias.shape)
    return layers


def seeded(make: Make) -> Layers:
    torch.manual_seed(0)
    return make()


def randomised(model: Layers, config: Any) -> Any:
    """The model with PEFT's adapter, every trained number random."""
    config.target_modules = config.target_modules or [name for name, _ in model.named_children()]
    wrapped = peft.get_peft_model(model, config).double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return wrapped


def weights(model: Any) -> dict[str, Any]:
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def error(found: Any, expected: Any) -> float:
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 1e-4
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def compared(adapter: Adapter, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Every tensor that PEFT changes is changed alike, and no other."""
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    seen: set[str] = set()
    for site, update in adapter.items():
        base, bias = before[f"{site}.weight"], before.get(f"{site}.bias")
        change = after[f"{site}.weight"] - base
        assert error(update.delta_weight(np.float64, base=base), change) < DOUBLE
        delta_bias = update.delta_bias(np.float64, base=bias)
        seen.add(f"{site}.weight")
        if delta_bias is not None:
            seen.add(f"{site}.bias")
            assert error(delta_bias, after[f"{site}.bias"] - bias) < DOUBLE
        resolved: Any = update.resolved(base.shape)  # type: ignore[attr-defined]  # of those alone
        assert resolved.base_shape == base.shape
        if isinstance(resolved, Expanded):
            assert resolved.norm() == pytest.approx(float(np.linalg.norm(change)), rel=1e-10)
            matrix = change.T if resolved.is_transposed else change.reshape(change.shape[0], -1)
            assert np.linalg.matrix_rank(matrix, tol=1e-9 * np.abs(change).max()) <= resolved.rank
            x = np.random.default_rng(0).standard_normal((3, matrix.shape[1]))
            assert error(resolved.apply(x), x @ matrix.T) < DOUBLE
    assert seen == changed


def checked(make: Make, config: Any, folder: Path) -> Adapter:
    model = seeded(make)
    before = weights(model)
    wrapped = randomised(model, config)
    wrapped.save_pretrained(folder)
    adapter = formats.read(folder)
    compared(adapter, before, weights(copy.deepcopy(wrapped).merge_and_unload()))
    return adapter


def checked_as_loaded(adapter: Adapter, make: Make, folder: Path, peft_type: str) -> None:
    """Write the adapter as an edited one, let PEFT load it, and compare what it merges."""
    formats.write(adapter.with_sites(dict(adapter)), folder, format="peft")
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == peft_type
    model = seeded(make)
    before = weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=UserWarning)  # missing or unexpected keys
        loaded = peft.PeftModel.from_pretrained(model, folder).double()
    compared(adapter, before, weights(copy.deepcopy(loaded).merge_and_unload()))
