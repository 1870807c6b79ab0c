"""LoHa and LoKr against PEFT: files that it saves are read as it merges them, and it loads what is written."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter
from lorascope.errors import AdapterError
from oracles.peft_merges import (
    DOUBLE,
    Make,
    checked,
    checked_as_loaded,
    conv1d,
    convolutions,
    error,
    linears,
    randomised,
    seeded,
    weights,
)

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_double")]


@pytest.mark.parametrize("make", [linears, convolutions, conv1d])
@pytest.mark.parametrize("is_effective", [False, True])
def test_loha(make: Make, is_effective: bool, tmp_path: Path) -> None:
    config = peft.LoHaConfig(
        r=2, alpha=3, use_effective_conv2d=is_effective, rank_pattern={"tall": 3, "point": 1}, alpha_pattern={"two": 5}
    )
    adapter = checked(make, config, tmp_path / "a")
    checked_as_loaded(adapter, make, tmp_path / "b", "LOHA")


@pytest.mark.parametrize("make", [linears, convolutions])
@pytest.mark.parametrize(
    "fields",
    [
        {"r": 1},
        {"r": 64},
        {"r": 1, "decompose_both": True},
        {"r": 1, "decompose_factor": 2},
        {"r": 2, "decompose_factor": 4, "decompose_both": True},
        {"r": 1, "use_effective_conv2d": True, "rank_pattern": {"wide": 8, "point": 3}},
    ],
)
def test_lokr(make: Make, fields: dict[str, Any], tmp_path: Path) -> None:
    adapter = checked(make, peft.LoKrConfig(alpha=3, **fields), tmp_path / "a")
    assert {update.kind for update in adapter.values()} == {"lokr"}
    checked_as_loaded(adapter, make, tmp_path / "b", "LOKR")
    if make is linears or fields.get("use_effective_conv2d"):
        foreign = Adapter(dict(adapter))  # without the configuration that made the shapes
        checked_as_loaded(foreign, make, tmp_path / "c", "LOKR")


def test_a_field_of_lora_means_nothing_to_other_types(tmp_path: Path) -> None:
    before = checked(linears, peft.LoHaConfig(r=4, alpha=2), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": True}))
    assert {update.scale for update in before.values()} == {0.5}
    assert {update.scale for update in formats.read(tmp_path).values()} == {0.5}
    loaded = peft.PeftModel.from_pretrained(seeded(linears), tmp_path)
    assert loaded.base_model.model.wide.scaling == {"default": 0.5}


def test_lokr_of_a_convolution_in_one_dimension(tmp_path: Path) -> None:
    adapter = checked(conv1d, peft.LoKrConfig(r=1, alpha=3), tmp_path / "a")
    checked_as_loaded(adapter, conv1d, tmp_path / "b", "LOKR")


def test_lokr_whose_axes_peft_mixes_up_is_refused(tmp_path: Path) -> None:
    """PEFT's ΔW for a whole w2 [s, t, k] is no w1 ⊗ w2: it meets w1 [p, q] at the last two axes, then reshapes."""
    model = seeded(conv1d)
    before = weights(model)["one.weight"]
    wrapped = randomised(model, peft.LoKrConfig(r=12, alpha=12))
    wrapped.save_pretrained(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    w1, w2 = (tensors[f"base_model.model.one.lokr_w{number}"] for number in (1, 2))
    change = weights(wrapped.merge_and_unload())["one.weight"] - before
    assert error(np.kron(w1[None], w2).reshape(before.shape), change) < DOUBLE
    assert error(np.einsum("pq,stk->psqtk", w1, w2).reshape(before.shape), change) > 0.1
    with pytest.raises(AdapterError, match="one-dimensional convolution"):
        formats.read(tmp_path)


def test_lokr_whose_shapes_peft_has_not_becomes_lora(tmp_path: Path) -> None:
    checked(linears, peft.LoKrConfig(r=1, alpha=3), tmp_path / "a")
    weights_path = tmp_path / "a/adapter_model.safetensors"
    rng = np.random.default_rng(0)
    tensors = safetensors.numpy.load_file(weights_path)
    for site, shapes in {"wide": ((8, 1), (1, 12)), "tall": ((4, 1), (5, 8)), "square": ((2, 2), (8, 8))}.items():
        for key in [key for key in tensors if f".{site}." in key]:
            del tensors[key]
        tensors |= {
            f"base_model.model.{site}.lokr_w{number}": rng.standard_normal(shape)
            for number, shape in enumerate(shapes, start=1)
        }
    safetensors.numpy.save_file(tensors, weights_path)
    adapter = Adapter(dict(formats.read(tmp_path / "a")))
    with pytest.raises(AdapterError, match="not of low rank"):
        formats.write(adapter, tmp_path / "b", format="peft")
    low = Adapter({"wide": adapter["wide"]})
    formats.write(low, tmp_path / "c", format="peft")
    again = formats.read(tmp_path / "c")["wide"]
    assert again.kind == "lora" and error(again.delta_weight(np.float64), low["wide"].delta_weight(np.float64)) < DOUBLE
