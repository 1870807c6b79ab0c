"""Merges of real adapters of one base that no one here wrote: exact sums, what is refused, and loading in PEFT."""

from __future__ import annotations

import copy
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter
from lorascope.errors import AdapterError, LorascopeError
from lorascope.merge import METHODS, merge
from lorascope.symmetry.truncation import Cut

ROOT = Path(
    os.environ.get("LORASCOPE_REAL_ADAPTERS") or Path(__file__).resolve().parents[2].parent / "shared" / "adapters"
)
if not (ROOT / "INDEX.json").is_file():
    pytest.skip(f"real adapters were not run: {ROOT} is not there", allow_module_level=True)

GPT2 = ("shibbir24+Smart-Review-AI/lora_adapter", "shibbir24+Smart-Review-AI/lora_adapter/checkpoint-2500")
SAM = "MathieuNlp+Sam_LoRA/@941d3de6/lora_weights/lora_rank{}.safetensors"
PAIRS = {
    "gpt2 in peft": (*GPT2, "peft"),
    "qwen in mlx": (*(f"wyek1n+MLX-CLI/adapters/0000{n}00_adapters.safetensors" for n in (1, 2)), "mlx"),
    "sam, ranks 2 and 16": (SAM.format(2), SAM.format(16), "sam-lora"),
    "stable diffusion 1.5": (
        "catundchat+stable-diffusion-v1.5-lora/pytorch_lora_weights.safetensors",
        "catundchat+stable-diffusion-v1.5-lora/pytorch_lora_weights.bin",
        "diffusers",
    ),
}


def pair_of(name: str) -> tuple[list[Adapter], str]:
    *paths, to = PAIRS[name]
    adapters = [formats.read(ROOT / path) for path in paths]
    assert set(adapters[0]) == set(adapters[1])
    return adapters, to


def some_sites(adapter: Adapter) -> list[str]:
    return list(adapter)[:: max(1, len(adapter) // 3)]


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_merges_to_the_dense_sum_and_is_written(name: str, tmp_path: Path) -> None:
    adapters, to = pair_of(name)
    weights = [0.7, -0.4]
    done = merge(adapters, weights=weights)
    assert done.relative_error < 2e-7 and len(done.sites) == len(adapters[0])
    target = tmp_path / ("merged" if to in ("peft", "mlx", "diffusers") else "merged.safetensors")
    formats.write(done.adapter, target, format=to)
    again = formats.read(target)
    assert set(again) == set(adapters[0])
    for site in some_sites(adapters[0]):
        deltas = [one[site].delta_weight(np.float64) for one in adapters]
        expected = weights[0] * deltas[0] + weights[1] * deltas[1]
        size = sum(np.linalg.norm(delta) for delta in deltas)
        assert np.linalg.norm(again[site].delta_weight(np.float64) - expected) < 1e-6 * size


@pytest.mark.parametrize("method", [name for name in METHODS.names() if name not in ("b-lora", "ffa", "fed-sb")])
def test_every_method_merges_real_adapters(method: str) -> None:
    """At two small sites, [128, 896]: a finite result of the rank that was asked for."""
    adapters, _ = pair_of("qwen in mlx")
    small = [site for site in adapters[0] if site.endswith("v_proj")][:2]
    few = [one.with_sites({site: one[site] for site in small}) for one in adapters]
    done = merge(few, method, cut=Cut(rank=8))
    assert 0 < done.adapter.norm() < 10 * sum(one.norm() for one in few)
    assert {site.rank for site in done.sites.values()} <= set(range(1, 9)) and 0 <= done.relative_error < 1


def test_adapters_that_were_trained_apart_do_not_share_factors() -> None:
    adapters = [formats.read(ROOT / SAM.format(rank)) for rank in (4, 4)]
    assert merge(adapters, "fed-sb").relative_error < 1e-6  # twice the same
    other = [formats.read(ROOT / SAM.format(rank)) for rank in (4, 8)]
    with pytest.raises(LorascopeError, match="the adapters do not share"):
        merge(other, METHODS["ffa"]())


def test_a_scale_that_is_not_in_the_file_is_asked_for() -> None:
    adapter = formats.read(ROOT / "iopenattheclose+PotterBot/adapters.npz")
    with pytest.raises(AdapterError, match=r"it is not certain what was trained.*\n.*--scale"):
        merge([adapter, adapter])


def test_adapters_of_two_bases_are_refused() -> None:
    with pytest.raises(AdapterError):
        merge([formats.read(ROOT / GPT2[0]), formats.read(ROOT / PAIRS["qwen in mlx"][0])])


def test_peft_loads_the_merge_and_its_layers_give_the_merged_outputs(tmp_path: Path) -> None:
    """On a model that is only the adapted layers of GPT-2, with random weights."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
        conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D

    adapters, _ = pair_of("gpt2 in peft")
    few = [one.with_sites({site: one[site] for site in list(one)[:2]}) for one in adapters]
    done = merge(few, weights=[0.5, 0.5])
    formats.write(done.adapter, tmp_path / "merged", format="peft")
    assert json.loads((tmp_path / "merged" / "adapter_config.json").read_text())["r"] == 16

    class Holder(torch.nn.Module):  # type: ignore[misc, name-defined]  # as importorskip gives it
        def forward(self, x: Any) -> Any:
            return x

    base = Holder()
    for site in few[0]:
        place = base
        *path, last = site.split(".")
        for name in path:
            if not hasattr(place, name):
                place.add_module(name, Holder())
            place = getattr(place, name)
        out, in_ = few[0][site].shape
        place.add_module(last, conv1d(out, in_))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "merged").eval()
    for site in few[0]:
        layer = loaded.base_model.model.get_submodule(site)
        x = torch.randn(4, few[0][site].shape[1], generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            moved = (layer(x) - layer.base_layer(x)).double().numpy()
        expected = sum(0.5 * one[site].apply(x.double().numpy()) for one in few)
        assert np.linalg.norm(moved - expected) < 1e-4 * np.linalg.norm(expected)
