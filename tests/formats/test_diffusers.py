"""diffusers files in their three grammars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.errors import AdapterError

RNG = np.random.default_rng(0)
DOWN, UP = RNG.standard_normal((2, 4)).astype(np.float32), RNG.standard_normal((5, 2)).astype(np.float32)


def read(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> Adapter:
    safetensors.numpy.save_file(tensors, path / "pytorch_lora_weights.safetensors", metadata)
    return formats.read(path)


@pytest.mark.parametrize(
    ("down", "up", "site"),
    [
        ("b.attn1.processor.to_q_lora.down.weight", "b.attn1.processor.to_q_lora.up.weight", "b.attn1.to_q"),
        ("b.attn1.processor.to_out_lora.down.weight", "b.attn1.processor.to_out_lora.up.weight", "b.attn1.to_out.0"),
        ("unet.b.to_q.lora.down.weight", "unet.b.to_q.lora.up.weight", "unet.b.to_q"),
        (
            "text_encoder.q_proj.lora_linear_layer.down.weight",
            "text_encoder.q_proj.lora_linear_layer.up.weight",
            "text_encoder.q_proj",
        ),
        ("unet.b.to_q.lora_A.weight", "unet.b.to_q.lora_B.weight", "unet.b.to_q"),
        ("transformer.x.lora_A.default.weight", "transformer.x.lora_B.default.weight", "transformer.x"),
    ],
)
def test_each_grammar_names_its_sites(tmp_path: Path, down: str, up: str, site: str) -> None:
    adapter = read(tmp_path, {down: DOWN, up: UP})
    assert adapter.provenance.format == "diffusers"
    assert list(adapter) == [site]
    np.testing.assert_allclose(adapter[site].delta_weight(), UP @ DOWN, rtol=1e-6)
    assert [note.code for note in adapter.notes] == ["scale-assumed"]


def test_an_alpha_tensor_is_divided_by_the_rank(tmp_path: Path) -> None:
    tensors = {
        "unet.q.lora.down.weight": DOWN,
        "unet.q.lora.up.weight": UP,
        "unet.q.alpha": np.array(3, np.float32),
    }
    adapter = read(tmp_path, tensors | {"unet.k.alpha": np.ones((), np.float32)})
    assert adapter["unet.q"].scale == 1.5
    assert list(adapter.leftovers) == ["unet.k.alpha"]


def test_the_metadata_configures_each_component(tmp_path: Path) -> None:
    config = {"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"k": 1}, "text_encoder.r": 2}
    tensors = {
        f"{site}.lora_{half}.weight": value
        for site in ("unet.q", "unet.k", "text_encoder.q", "transformer.q")
        for half, value in (("A", DOWN), ("B", UP))
    }
    adapter = read(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(config)})
    assert {site: update.scale for site, update in adapter.items()} == {
        "unet.q": 4.0,
        "unet.k": 0.5,
        "text_encoder.q": 4.0,
        "transformer.q": 1.0,
    }
    assert [(note.code, note.site) for note in adapter.notes] == [
        ("scale-assumed", "transformer.q"),
        ("scale-assumed", "text_encoder.q"),
    ]
    assert "default 8" in adapter.notes[1].text


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_metadata_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(AdapterError, match="JSON"):
        read(tmp_path, {"unet.q.lora_A.weight": DOWN, "unet.q.lora_B.weight": UP}, {"lora_adapter_metadata": text})


def test_edited_and_foreign_adapters_are_not_written_yet(tmp_path: Path) -> None:
    adapter = Adapter({"unet.q": LowRank(UP, DOWN)})
    with pytest.raises(AdapterError, match="only as they were read"):
        formats.write(adapter, tmp_path / "x.safetensors", format="diffusers")
