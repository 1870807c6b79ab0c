"""LyCORIS itself: the networks it saves are read to the change of the weight that its forward pass applies.

Its merge is not the oracle, since it applies the scale of LoHa and LoKr twice. The weight that a layer applies is found by
feeding it the unit inputs (for a convolution the unit patches).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lycoris = pytest.importorskip("lycoris")

pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-5
"""Relative: the networks hold float32."""

BOTTOM = {"decompose_both": True, "factor": 4}


class Layers(torch.nn.Module):
    """One layer of each kind; sizes differ, and 15 and 9 are odd."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(24, 36)
        self.odd = torch.nn.Linear(15, 9, bias=False)
        self.square = torch.nn.Linear(16, 16)
        self.conv1 = torch.nn.Conv2d(12, 20, 1)
        self.conv3 = torch.nn.Conv2d(8, 12, 3, bias=False)
        self.conv_square = torch.nn.Conv2d(8, 8, (3, 2))
        self.line = torch.nn.Conv1d(8, 12, 3)
        self.norm = torch.nn.LayerNorm(24)


def weight_applied(layer: Any) -> Any:
    """The weight that the layer's forward pass multiplies with."""
    with torch.no_grad():
        if isinstance(layer, torch.nn.Linear):
            inputs = torch.eye(layer.in_features)
            return (layer(inputs) - layer(torch.zeros_like(inputs))).T.double().numpy()
        size = (layer.in_channels, *layer.kernel_size)
        patches = torch.eye(int(np.prod(size))).reshape(-1, *size)
        columns = layer(patches) - layer(torch.zeros_like(patches))
        return columns.reshape(len(patches), -1).T.reshape(-1, *size).double().numpy()


def trained(algo: str, *, seed: int = 0, **options: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The layers with a network of random weights on them, the network, and the base weights."""
    torch.manual_seed(seed)
    layers = Layers()
    base = {name: layer.weight.detach().double().numpy().copy() for name, layer in layers.named_children()}
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Layers"], "target_name": []})
    dim, alpha = options.pop("dim", 3), options.pop("alpha", 2.0)
    network = lycoris.create_lycoris(
        layers, 1.0, linear_dim=dim, linear_alpha=alpha, conv_dim=dim, conv_alpha=alpha, algo=algo, **options
    )
    network.apply_to()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            is_factor = not name.endswith(("dora_scale", "rescale"))
            values = torch.randn_like(parameter)
            parameter.add_(0.3 * values if is_factor else 0.1 * values.abs())
    return layers, network.eval(), base


def saved(network: Any, path: Path, dtype: Any = None) -> Adapter:
    network.save_weights(str(path), dtype, {})
    return formats.read(path)


def assert_read(adapter: Adapter, layers: Any, base: dict[str, Any], *, least: int = 7) -> None:
    compared = 0
    for name, update in adapter.items():
        name = name.removeprefix("lycoris_")
        layer = getattr(layers, name)
        if isinstance(layer, torch.nn.LayerNorm):
            continue
        expected = weight_applied(layer) - base[name]
        delta = update.delta_weight(np.float64, base=base[name])
        assert delta.size == expected.size
        np.testing.assert_allclose(
            delta.reshape(expected.shape), expected, rtol=0, atol=TOLERANCE * np.abs(expected).max()
        )
        assert np.abs(expected).max() > 1e-3
        compared += 1
    assert compared >= least


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("lora", {}),
        ("lora", {"use_tucker": True}),
        ("lora", {"rs_lora": True}),
        ("lora", {"use_scalar": True}),
        ("lora", {"dora_wd": True}),
        ("lora", {"dora_wd": True, "wd_on_output": False}),
        ("lora", {"dora_wd": True, "wd_on_output": False, "use_tucker": True}),
        ("loha", {}),
        ("loha", {"use_tucker": True}),
        ("loha", {"rs_lora": True}),
        ("loha", {"use_scalar": True}),
        ("loha", {"dora_wd": True}),
        ("loha", {"dora_wd": True, "wd_on_output": False}),
        ("lokr", {}),
        ("lokr", {"factor": 4}),
        ("lokr", {"use_tucker": True, "dim": 1}),
        ("lokr", {"use_tucker": True, "dim": 1, "factor": 2}),
        ("lokr", {"dim": 1, "factor": 4, "decompose_both": True}),
        ("lokr", {"dim": 1, "decompose_both": True, "use_tucker": True}),
        ("lokr", {"full_matrix": True}),
        ("lokr", {"unbalanced_factorization": True, "factor": 3}),
        ("lokr", {"rs_lora": True, "dim": 2, "factor": 2}),
        ("lokr", {"use_scalar": True, "dim": 1}),
        ("lokr", {"dora_wd": True, "dim": 1}),
        ("lokr", {"dora_wd": True, "wd_on_output": False, "dim": 1}),
        ("glora", {}),
        ("ia3", {}),
        ("ia3", {"train_on_input": True}),
        ("diag-oft", {"dim": 4}),
        ("diag-oft", {"dim": 4, "constraint": 0.05}),
        ("diag-oft", {"dim": 4, "rescaled": True}),
        ("dylora", {"dim": 4, "block_size": 2}),
    ],
    ids=str,
)
def test_what_lycoris_saves_is_read_as_its_forward_applies_it(
    tmp_path: Path, algo: str, options: dict[str, Any]
) -> None:
    layers, network, base = trained(algo, **options)
    adapter = saved(network, tmp_path / "x.safetensors")
    assert_read(adapter, layers, base)


@pytest.mark.parametrize("options", [{"dim": 4}, {"dim": 4, "constraint": 0.05}, {"dim": 8, "rescaled": True}], ids=str)
def test_the_butterfly_is_read_as_its_forward_applies_it(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layers = Layers()
    del layers.odd  # no butterfly has 9 rows
    layers, network, base = trained("boft", **options) if False else _butterfly(options)
    assert_read(saved(network, tmp_path / "x.safetensors"), layers, base, least=5)
