"""LyCORIS itself: the networks it saves are read to the change of the weight that its forward pass applies.

Its merge is not the oracle, since it applies the scale of LoHa and LoKr twice. The weight that a layer applies is found
by feeding it the unit inputs (for a convolution the unit patches).
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


def trained(algo: str, *, without: tuple[str, ...] = (), **options: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The layers with a network of random weights on them, the network, and the base weights."""
    torch.manual_seed(0)
    layers = Layers()
    for name in without:
        delattr(layers, name)
    base = {name: layer.weight.detach().double().numpy().copy() for name, layer in layers.named_children()}
    network_class = lycoris.LycorisNetwork
    network_class.apply_preset({"target_module": ["Linear", "Conv1d", "Conv2d", "LayerNorm"], "target_name": []})
    dim, alpha = options.pop("dim", 3), options.pop("alpha", 2.0)
    network = network_class(
        layers, 1.0, lora_dim=dim, conv_lora_dim=dim, alpha=alpha, conv_alpha=alpha, network_module=algo, **options
    )
    network.apply_to()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            is_scale = name.endswith(("dora_scale", "rescale"))
            parameter.add_(torch.rand_like(parameter) if is_scale else 0.3 * torch.randn_like(parameter))
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
        ("lora", {"weight_decompose": True}),
        ("lora", {"weight_decompose": True, "wd_on_out": False}),
        ("lora", {"weight_decompose": True, "wd_on_out": False, "use_tucker": True}),
        ("loha", {}),
        ("loha", {"use_tucker": True}),
        ("loha", {"rs_lora": True}),
        ("loha", {"use_scalar": True}),
        ("loha", {"weight_decompose": True}),
        ("loha", {"weight_decompose": True, "wd_on_out": False}),
        ("lokr", {}),
        ("lokr", {"factor": 4}),
        ("lokr", {"use_tucker": True, "dim": 1}),
        ("lokr", {"use_tucker": True, "dim": 1, "factor": 2}),
        ("lokr", {"dim": 1, "factor": 4, "decompose_both": True}),
        ("lokr", {"dim": 1, "decompose_both": True, "use_tucker": True}),
        ("lokr", {"full_matrix": True}),
        ("lokr", {"unbalanced_factorization": True, "factor": 3}),
        ("lokr", {"rs_lora": True, "dim": 2, "factor": 1}),
        ("lokr", {"use_scalar": True, "dim": 1}),
        ("lokr", {"weight_decompose": True, "dim": 1}),
        ("lokr", {"weight_decompose": True, "wd_on_out": False, "dim": 1}),
        ("glora", {}),
        ("ia3", {}),
        ("ia3", {"train_on_input": True}),
        ("diag-oft", {"dim": 4}),
        ("diag-oft", {"dim": 4, "constraint": 0.05}),
        ("diag-oft", {"dim": 4, "rescaled": True}),
    ],
    ids=str,
)
def test_what_lycoris_saves_is_read_as_its_forward_applies_it(
    tmp_path: Path, algo: str, options: dict[str, Any]
) -> None:
    layers, network, base = trained(algo, **options)
    adapter = saved(network, tmp_path / "x.safetensors")
    assert_read(adapter, layers, base)


@pytest.mark.parametrize(
    "options", [{"dim": 6}, {"dim": 6, "constraint": 0.05}, {"dim": 6, "rescaled": True}, {"dim": 10}], ids=str
)
def test_the_butterfly_is_read_as_its_forward_applies_it(tmp_path: Path, options: dict[str, Any]) -> None:
    layers, network, base = trained("boft", without=("linear", "odd", "conv1"), **options)  # of 36, 9 and 20 rows
    adapter = saved(network, tmp_path / "x.safetensors")
    assert {update.kind for update in adapter.values()} == {"lycoris-boft"}
    assert max(update.stored["blocks"].shape[0] for update in adapter.values()) >= 2
    assert_read(adapter, layers, base, least=4)


def test_a_whole_lokr_under_rs_lora_is_read_as_lycoris_loads_it(tmp_path: Path) -> None:
    # it trains with √dim, and neither its own reader nor anyone can tell that from the file
    layers, network, base = trained("lokr", full_matrix=True, rs_lora=True, dim=4)
    adapter = saved(network, tmp_path / "x.safetensors")
    update = adapter["lycoris_linear"]
    trained_with = weight_applied(layers.linear) - base["linear"]
    np.testing.assert_allclose(2.0 * update.delta_weight(np.float64), trained_with, rtol=0, atol=1e-5)
    torch.manual_seed(0)
    other = Layers()
    rebuilt, _ = lycoris.create_lycoris_from_weights(1.0, str(tmp_path / "x.safetensors"), other)
    rebuilt.apply_to()
    loaded = weight_applied(other.linear) - base["linear"]
    np.testing.assert_allclose(update.delta_weight(np.float64), loaded, rtol=0, atol=1e-5)


def test_full_differences_and_norms(tmp_path: Path) -> None:
    layers, network, base = trained("full", train_norm=True)
    adapter = saved(network, tmp_path / "x.safetensors")
    assert_read(adapter, layers, base)
    stored = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    norm = adapter["lycoris_norm"]
    assert (norm.layer, norm.base_shape) == ("norm", (24,))
    np.testing.assert_array_equal(norm.delta_weight(np.float32), stored["lycoris_norm.w_norm"])
    np.testing.assert_array_equal(norm.delta_bias(), stored["lycoris_norm.b_norm"])
    np.testing.assert_array_equal(adapter["lycoris_linear"].delta_bias(), stored["lycoris_linear.diff_b"])
    assert adapter["lycoris_odd"].delta_bias() is None
    inputs = torch.randn(5, 24)
    with torch.no_grad():
        normed = torch.nn.functional.layer_norm(inputs, (24,))
        weight = 1 + torch.from_numpy(norm.delta_weight(np.float32))
        expected = normed * weight + torch.from_numpy(norm.delta_bias())
        torch.testing.assert_close(layers.norm(inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("lora", {"use_tucker": True}),
        ("loha", {"use_tucker": True}),
        ("loha", {"weight_decompose": True}),
        ("lokr", {"dim": 1, "factor": 4, "decompose_both": True}),
        ("lokr", {"full_matrix": True, "weight_decompose": True}),
        ("full", {"train_norm": True}),
    ],
    ids=str,
)
def test_what_is_written_lycoris_rebuilds(tmp_path: Path, algo: str, options: dict[str, Any]) -> None:
    layers, network, _ = trained(algo, **options)
    adapter = saved(network, tmp_path / "x.safetensors")
    edited = adapter.with_sites(dict(adapter))
    formats.write(edited, tmp_path / "y.safetensors", format="lycoris")
    again, first = (safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in "yx")
    for key in first:
        if not (key.endswith("alpha") and algo in ("lokr", "full")):
            np.testing.assert_array_equal(again[key], first[key])
    torch.manual_seed(0)
    other = Layers()
    rebuilt, _ = lycoris.create_lycoris_from_weights(1.0, str(tmp_path / "y.safetensors"), other)
    rebuilt.apply_to()
    for name in ("linear", "odd", "conv1", "conv3"):
        np.testing.assert_allclose(
            weight_applied(getattr(other, name)), weight_applied(getattr(layers, name)), rtol=0, atol=1e-5
        )
