"""PEFT's low-rank types near LoRA against PEFT: files that it saves are read as it merges them, and it loads what is
written; configurations and tensors that do not fit, of all types."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
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
    convolutions,
    error,
    gpt2_layers,
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


# AdaLoRA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (linears, {"init_r": 4, "lora_alpha": 6}),
        (linears, {"init_r": 3, "lora_alpha": 0}),
        (convolutions, {"init_r": 5, "lora_alpha": 2, "r": 1}),
        (gpt2_layers, {"init_r": 4, "fan_in_fan_out": True}),
    ],
)
def test_adalora(make: Make, fields: dict[str, Any], tmp_path: Path) -> None:
    adapter = checked(make, peft.AdaLoraConfig(total_step=10, **fields), tmp_path / "a")
    assert {update.kind for update in adapter.values()} == {"adalora"}
    checked_as_loaded(adapter, make, tmp_path / "b", "ADALORA")
    checked_as_loaded(Adapter(dict(adapter)), make, tmp_path / "c", "ADALORA")
    moved = Adapter({site: update.rescaled(0.3) for site, update in adapter.items()})
    checked_as_loaded(moved, make, tmp_path / "d", "ADALORA")
    assert {update.scale for update in formats.read(tmp_path / "d").values()} == {0.3}


def test_adalora_of_scales_that_differ_becomes_lora(tmp_path: Path) -> None:
    adapter = checked(linears, peft.AdaLoraConfig(total_step=10, init_r=3), tmp_path / "a")
    mixed = adapter.with_sites({**adapter, "wide": adapter["wide"].rescaled(0.5)})
    checked_as_loaded(mixed, linears, tmp_path / "b", "LORA")


def test_adalora_after_pruning(tmp_path: Path) -> None:
    """Rows are cut as the configuration's masks say, at one site all of them; the divisor stays init_r."""
    model = seeded(linears)
    before = weights(model)
    wrapped = randomised(model, peft.AdaLoraConfig(init_r=4, lora_alpha=6, total_step=10))
    masks = {"wide": [True, False, True, False], "tall": [False] * 4, "square": [True] * 4}
    pattern = {f"{site}.lora_E": mask for site, mask in masks.items()}
    for site, mask in masks.items():
        getattr(wrapped.base_model.model, site).lora_E["default"].data *= torch.tensor(mask)[:, None]
    after = weights(copy.deepcopy(wrapped).merge_and_unload())
    wrapped.peft_config["default"].rank_pattern = {f"{name}.default": mask for name, mask in pattern.items()}
    wrapped.save_pretrained(tmp_path)
    adapter = formats.read(tmp_path)
    assert {site: update.dim for site, update in adapter.items()} == {"wide": 2, "tall": 0, "square": 4}
    for site, update in adapter.items():
        change = after[f"{site}.weight"] - before[f"{site}.weight"]
        delta = update.delta_weight(np.float64)
        assert delta.shape == change.shape and np.abs(delta - change).max() < DOUBLE
        assert update.norm() == pytest.approx(float(np.linalg.norm(change)), abs=1e-10)
        spectrum = update.spectrum()
        assert spectrum is not None and len(spectrum) == update.dim
    formats.write(adapter.with_sites(dict(adapter)), tmp_path / "again", format="peft")
    loaded = peft.PeftModel.from_pretrained(seeded(linears), tmp_path / "again").double()
    merged = weights(loaded.merge_and_unload())
    for name, tensor in after.items():
        assert np.abs(merged[name] - tensor).max() < DOUBLE


# VeRA, DeLoRA, GraLoRA -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [linears, gpt2_layers])
@pytest.mark.parametrize("rank", [3, 20])
def test_vera(make: Make, rank: int, tmp_path: Path) -> None:
    fields = {"fan_in_fan_out": True} if make is gpt2_layers else {}
    adapter = checked(make, peft.VeraConfig(r=rank, projection_prng_key=7, **fields), tmp_path / "a")
    checked_as_loaded(adapter, make, tmp_path / "b", "VERA")
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["projection_prng_key"] == 7
    update: Any = adapter["wide"]
    assert update.needs == "base shape"
    with pytest.raises(AdapterError, match="up to 16 inputs"):
        update.resolved((17, 8) if update.is_transposed else (8, 17))


def test_vera_of_sites_with_other_projections_becomes_lora(tmp_path: Path) -> None:
    adapter = checked(linears, peft.VeraConfig(r=3), tmp_path / "a")
    other = checked(linears, peft.VeraConfig(r=3, projection_prng_key=1), tmp_path / "b")
    mixed: dict[str, Any] = {**adapter, "tall": other["tall"]}
    shapes = {name: tuple(layer.weight.shape) for name, layer in linears().named_children()}
    resolved = {name: update.resolved(shapes[name]) for name, update in mixed.items()}
    checked_as_loaded(adapter.with_sites(resolved), linears, tmp_path / "c", "LORA")


def test_vera_of_fewer_sites_is_written_with_smaller_projections(tmp_path: Path) -> None:
    """PEFT makes them as large as the largest site that is adapted."""
    adapter: Any = checked(linears, peft.VeraConfig(r=3), tmp_path / "a")
    fewer = adapter.with_sites({"wide": adapter["wide"].resolved((8, 12))})
    checked_as_loaded(fewer, linears, tmp_path / "b", "VERA")


def test_vera_without_its_projections_says_why(tmp_path: Path) -> None:
    randomised(seeded(linears), peft.VeraConfig(r=3, save_projection=False)).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="projection_prng_key"):
        formats.read(tmp_path)


@pytest.mark.parametrize("fields", [{"r": 3}, {"r": 5, "delora_lambda": 4, "rank_pattern": {"tall": 2}}])
def test_delora(fields: dict[str, Any], tmp_path: Path) -> None:
    checked(linears, peft.DeloraConfig(**fields), tmp_path)


def test_delora_of_a_fresh_adapter_divides_by_no_zero(tmp_path: Path) -> None:
    peft.get_peft_model(seeded(linears), peft.DeloraConfig(target_modules=["wide"])).save_pretrained(tmp_path)
    assert formats.read(tmp_path)["wide"].norm() == 0.0


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 4, "gralora_k": 2, "alpha": 6},
        {"r": 8, "gralora_k": 4, "alpha": 3},
        {"r": 3, "gralora_k": 1, "alpha": 3},
        {"r": 4, "gralora_k": 2, "alpha": 6, "hybrid_r": 3},
    ],
)
@pytest.mark.parametrize("make", [linears, gpt2_layers])
def test_gralora(make: Make, fields: dict[str, Any], tmp_path: Path) -> None:
    transposed = {"fan_in_fan_out": True} if make is gpt2_layers else {}
    adapter = checked(make, peft.GraloraConfig(**fields, **transposed), tmp_path)
    assert {update.dim for update in adapter.values()} == {fields["r"] + fields.get("hybrid_r", 0)}


# Conversion to LORA, real files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.AdaLoraConfig(init_r=3, total_step=10, target_modules=["wide", "tall", "square"]),
        lambda: peft.DeloraConfig(r=2),
        lambda: peft.GraloraConfig(r=2, gralora_k=2),
    ],
)
def test_low_rank_types_are_written_as_lora(config: Callable[[], Any], tmp_path: Path) -> None:
    adapter = checked(linears, config(), tmp_path / "a")
    formats.write(adapter.with_sites(dict(adapter)), tmp_path / "b", format="peft")
    loaded = peft.PeftModel.from_pretrained(seeded(linears), tmp_path / "b").double()
    for site, update in adapter.items():
        theirs = getattr(loaded.base_model.model, site).get_delta_weight("default").detach().numpy()
        assert error(update.delta_weight(np.float64), theirs) < DOUBLE


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (lambda: peft.AdaLoraConfig(init_r=3, total_step=9), {"init_r": 2.5}, "positive integer"),
        (lambda: peft.AdaLoraConfig(init_r=3, total_step=9), {"lora_alpha": "6"}, "alpha must be a number"),
        (lambda: peft.GraloraConfig(r=2, gralora_k=2), {"alpha": float("inf")}, "finite"),
        (lambda: peft.LoKrConfig(r=1), {"r": 3, "alpha": True}, "alpha must be a number"),
        (lambda: peft.LoKrConfig(r=1), {"r": 3}, "not the one that the configuration states"),
    ],
)
def test_a_configuration_that_does_not_fit_is_an_error(
    config: Callable[[], Any], change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    randomised(seeded(linears), config()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterError, match=said):
        formats.read(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.AdaLoraConfig(init_r=3, total_step=9),
        lambda: peft.IA3Config(feedforward_modules=["tall"]),
        lambda: peft.LNTuningConfig(),
        lambda: peft.VeraConfig(r=3),
        lambda: peft.DeloraConfig(r=3),
        lambda: peft.GraloraConfig(r=2, gralora_k=2),
        lambda: peft.LoKrConfig(r=1),
    ],
)
def test_damaged_tensors_give_one_error_that_names_the_site(config: Callable[[], Any], tmp_path: Path) -> None:
    wrapped = randomised(seeded(linears), config())
    wrapped.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    for key in [key for key in tensors if ".wide." in key or key.startswith("base_model.vera")]:
        whole = tensors[key]
        for damage in (None, whole[:0], whole.astype(np.int64), whole.reshape(-1)[: whole.size - 1], whole[None, None]):
            tensors.pop(key)
            if damage is not None:
                tensors[key] = np.ascontiguousarray(damage)
            safetensors.numpy.save_file(tensors, path)
            try:
                adapter = formats.read(tmp_path)
                delta = adapter["wide"].delta_weight(base=np.ones((8, 12))) if "wide" in adapter else None
                assert delta is None or delta.shape == (8, 12)
            except AdapterError as caught:
                assert str(tmp_path) in str(caught) or "wide" in str(caught)
            tensors[key] = whole
