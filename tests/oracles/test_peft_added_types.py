"""PEFT's structured types that add a ΔW of their own: read as it merges them and as it runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.errors import AdapterError
from peft_layers import (
    DOUBLE,
    ODD,
    SINGLE,
    SIZES,
    adapted,
    checked,
    error,
    gpt2_layers,
    linear_layers,
    peft,
    saved,
    torch,
)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_double")]


@pytest.mark.parametrize(
    "fields", [{"r": 3, "randlora_alpha": 5}, {"r": 4, "sparse": True}, {"r": 5, "very_sparse": True}]
)
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_randlora(make: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    model = make(ODD)
    updates = checked(adapted(model, peft.RandLoraConfig(**fields)), model, tmp_path, DOUBLE)
    assert updates["wide"].kind == "randlora" and updates["wide"].needs == "base shape"


def test_randlora_without_its_projections_says_why(tmp_path: Path) -> None:
    wrapped = adapted(linear_layers(ODD), peft.RandLoraConfig(r=3, save_projection=False))
    with pytest.raises(AdapterError, match="random projections are not in the file"):
        saved(wrapped, tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_randlora_as_it_is_saved_by_default(dtype: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    model = linear_layers(ODD)
    config = peft.RandLoraConfig(r=3, target_modules=list(ODD))
    wrapped = peft.get_peft_model(model, config).to(getattr(torch, dtype)).eval()
    for parameter in wrapped.parameters():
        parameter.data.normal_()
    adapter = saved(wrapped, tmp_path)
    for site, (base, _, _) in ((s, (getattr(model, s).base_layer.weight.detach().float().numpy(), 0, 0)) for s in ODD):
        layer = getattr(wrapped.base_model.model, site)
        expected = layer.get_delta_weight("default").detach().numpy()
        assert error(adapter[site].delta_weight(np.float64, base=base), expected) < SINGLE


@pytest.mark.parametrize("is_topk_saved", [False, True])
@pytest.mark.parametrize("fields", [{"r": 3, "topk": 2}, {"r": 2, "topk": 4}, {"r": 3, "topk": 1}])
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_vblora(make: Any, fields: dict[str, Any], is_topk_saved: bool, tmp_path: Path) -> None:
    model = make({name: (3 * in_, 3 * out) for name, (in_, out) in ODD.items()})
    config = peft.VBLoRAConfig(num_vectors=9, vector_length=3, save_only_topk_weights=is_topk_saved, **fields)
    updates = checked(adapted(model, config), model, tmp_path, DOUBLE)
    assert updates["wide"].shape == (21, 33) and updates["wide"].rank == fields["r"]
    B, A, scale = updates["wide"].factors(np.float64)
    delta = updates["wide"].delta_weight(np.float64)
    np.testing.assert_allclose(scale * B @ A, delta.T if updates["wide"].is_transposed else delta)


@pytest.mark.parametrize("fields", [{"n_frequency": 20}, {"n_frequency": 7, "scaling": 3.5, "random_loc_seed": 5}])
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_fourierft(make: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)  # PEFT's spectrum has the default dtype and is filled with float32
    model = make(ODD)
    config = peft.FourierFTConfig(n_frequency_pattern={"tall": 31}, **fields)
    checked(adapted(model, config), model, tmp_path, SINGLE)


@pytest.mark.parametrize(
    "fields",
    [
        {"n_frequency": 20},
        {"n_frequency": 33, "scaling": 3.5, "random_loc_seed": 5},
        {"n_frequency": 9, "use_idwt": False},
    ],
)
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_waveft(make: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    model = make(ODD)
    checked(adapted(model, peft.WaveFTConfig(**fields)), model, tmp_path, SINGLE)


def test_waveft_with_a_longer_wavelet_is_refused(tmp_path: Path) -> None:
    wrapped = adapted(linear_layers(ODD), peft.WaveFTConfig(n_frequency=9, wavelet_family="db2"))
    with pytest.raises(AdapterError, match="not read by this version"):
        saved(wrapped, tmp_path)


MISS: list[tuple[dict[str, Any], dict[str, tuple[int, int]]]] = [
    ({"r": 2}, ODD),
    ({"r": 5}, ODD),
    ({"r": 7, "init_weights": False}, ODD),
    ({"r": 4, "init_weights": "bat"}, SIZES),
    ({"r": 2, "init_weights": "bat"}, SIZES),
]
MINI: list[tuple[dict[str, Any], dict[str, tuple[int, int]]]] = [
    ({"r": 3, "mini_r": 4, "init_weights": "mini"}, SIZES),
    ({"r": 5, "mini_r": 2, "init_weights": "mini"}, SIZES),
]  # Bone had no such variant


@pytest.mark.parametrize(
    ("name", "fields", "sizes"), [*(("MISS", *one) for one in [*MISS, *MINI]), *(("BONE", *one) for one in MISS)]
)
def test_miss_and_bone(name: str, fields: dict[str, Any], sizes: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    model = linear_layers(sizes)
    wrapped = adapted(model, peft.MissConfig(**fields))
    updates = checked(wrapped, model, tmp_path, DOUBLE)
    assert updates["wide"].kind == ("bat" if fields.get("init_weights") == "bat" else "miss")
    if name == "BONE":  # the same tensors under the names of PEFT up to 0.17
        as_bone(tmp_path)
        again = formats.read(tmp_path)
        for site, update in updates.items():
            base = getattr(model, site).base_layer.weight.detach().numpy()
            np.testing.assert_array_equal(again[site].delta_weight(base=base), update.delta_weight(base=base))


def as_bone(folder: Path) -> None:
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = safetensors.numpy.load_file(weights)
    safetensors.numpy.save_file({key.replace("miss_", "bone_"): value for key, value in tensors.items()}, weights)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "BONE"}))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_c3a(size: int, tmp_path: Path) -> None:
    model = linear_layers(SIZES)
    updates = checked(adapted(model, peft.C3AConfig(block_size=size)), model, tmp_path, SINGLE)
    assert updates["wide"].shape == (8, 12) and updates["wide"].needs == "dense room"


@pytest.mark.parametrize("fields", [{"r": 1}, {"r": 2, "random_seed": 3}])
@pytest.mark.parametrize("is_windows", [False, True])
def test_shira(fields: dict[str, Any], is_windows: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if is_windows:
        monkeypatch.setattr("platform.system", lambda: "Windows")
    model = linear_layers(ODD)
    updates = checked(adapted(model, peft.ShiraConfig(**fields)), model, tmp_path, DOUBLE)
    assert updates["wide"].stored["indices"].dtype == (np.float32 if is_windows else np.int32)


@pytest.mark.parametrize("fields", [{"r": 2, "theta_d_length": 11}, {"r": 3, "theta_d_length": 200}])
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_unilora(make: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    model = make(ODD)
    updates = checked(adapted(model, peft.UniLoraConfig(save_indices=True, **fields)), model, tmp_path, DOUBLE)
    assert updates["wide"].rank == fields["r"] and updates["wide"].needs == "nothing"


def test_unilora_without_its_indices_is_refused(tmp_path: Path) -> None:
    wrapped = adapted(linear_layers(ODD), peft.UniLoraConfig(r=2, theta_d_length=11, save_indices=False))
    with pytest.raises(AdapterError, match="no tensors of the type UNILORA"):
        saved(wrapped, tmp_path)


@pytest.mark.parametrize("rank", [2, 5])
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_pvera(make: Any, rank: int, tmp_path: Path) -> None:
    model = make(ODD)
    checked(adapted(model, peft.PveraConfig(r=rank)), model, tmp_path, DOUBLE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"save_projection": False}, "projections are not in the file"), ({"sample_at_inference": True}, "at random")],
)
def test_pvera_that_is_not_whole_says_why(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    wrapped = adapted(linear_layers(ODD), peft.PveraConfig(r=2, **fields))
    with pytest.raises(AdapterError, match=message):
        saved(wrapped, tmp_path)
