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


def test_two_alphas_of_one_site_must_agree(tmp_path: Path) -> None:
    pair = {"unet.a.lora.down.weight": np.ones((2, 3)), "unet.a.lora.up.weight": np.ones((4, 2))}
    same = {"unet.a.alpha": np.array(4.0), "unet.a.lora.alpha": np.array(4.0, np.float16)}
    assert read(tmp_path, pair | same)["unet.a"].scale == 2.0
    for other in (1.0, 0.0):
        with pytest.raises(AdapterError, match="different alphas") as caught:
            read(tmp_path, pair | same | {"unet.a.lora.alpha": np.array(other)})
        assert caught.value.key == "unet.a"
        assert "unet.a.alpha = 4" in str(caught.value) and f"unet.a.lora.alpha = {other:g}" in str(caught.value)


def test_an_alpha_and_the_metadata_must_agree(tmp_path: Path) -> None:
    config = {"unet.r": 2, "unet.lora_alpha": 8}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    pair = {"unet.q.lora_A.weight": np.ones((2, 3)), "unet.q.lora_B.weight": np.ones((4, 2))}
    assert read(tmp_path, pair | {"unet.q.alpha": np.array(8.0)}, metadata)["unet.q"].scale == 4.0
    with pytest.raises(AdapterError, match=r"different scales .*4, as lora_adapter_metadata states.*0.5 of alpha 1"):
        read(tmp_path, pair | {"unet.q.alpha": np.array(1.0)}, metadata)


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


PAIR = {"unet.q.lora_A.weight": DOWN, "unet.q.lora_B.weight": UP}


def test_the_text_encoder_of_2023(tmp_path: Path) -> None:
    path = "text_encoder.layers.0.self_attn"
    adapter = read(tmp_path, {f"{path}.to_out_lora.down.weight": DOWN, f"{path}.to_out_lora.up.weight": UP})
    assert list(adapter) == [f"{path}.out_proj"]


@pytest.mark.parametrize("ending", ["lora_magnitude_vector", "lora_magnitude_vector.default.weight", "dora_scale"])
def test_a_magnitude_makes_dora(tmp_path: Path, ending: str) -> None:
    magnitude = np.arange(1, 6, dtype=np.float32)
    adapter = read(tmp_path, PAIR | {f"unet.q.{ending}": magnitude})
    assert adapter["unet.q"].kind == adapter.provenance.kind == "dora"
    base = RNG.standard_normal((5, 4))
    moved = base + adapter["unet.q"].delta_weight(np.float64, base=base)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), magnitude, rtol=1e-12)


def test_a_magnitude_of_an_attention_processor_has_the_older_name(tmp_path: Path) -> None:
    tensors = {"a.attn1.processor.to_out_lora.down.weight": DOWN, "a.attn1.processor.to_out_lora.up.weight": UP}
    adapter = read(tmp_path, tensors | {"a.attn1.to_out.lora_magnitude_vector": np.ones(5, np.float32)})
    assert {site: update.kind for site, update in adapter.items()} == {"a.attn1.to_out.0": "dora"}


def test_a_bias_changes_the_bias_of_the_layer(tmp_path: Path) -> None:
    tensors = PAIR | {"unet.q.lora_B.bias": np.arange(5, dtype=np.float32), "unet.q.alpha": np.array(4, np.float32)}
    adapter = read(tmp_path, tensors)
    delta = adapter["unet.q"].delta_bias(np.float64)
    assert delta is not None
    np.testing.assert_array_equal(delta, 2.0 * np.arange(5))


def test_extras_of_no_site_are_kept(tmp_path: Path) -> None:
    tensors = PAIR | {"unet.k.lora_B.bias": np.ones(5, np.float32), "unet.k.lora_magnitude_vector": np.ones(5)}
    assert sorted(read(tmp_path, tensors).leftovers) == ["unet.k.lora_B.bias", "unet.k.lora_magnitude_vector"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "match"),
    [
        (PAIR | {"unet.q.lora_B.bias": np.ones(4, np.float32)}, {}, "bias does not fit"),
        (PAIR | {"unet.q.lora_B.bias": np.ones(5, np.int8)}, {}, "does not hold floating-point"),
        (PAIR | {"unet.q.lora_magnitude_vector": np.ones(3)}, {}, "fits neither axis"),
        (PAIR | {"unet.q.lora_magnitude_vector": np.ones(5), "unet.q.dora_scale": np.ones(5)}, {}, "two tensors"),
        (PAIR, {"unet.r": 2, "unet.use_dora": True}, "magnitude is missing"),
        (PAIR, {"unet.r": 3}, "rank of the tensors"),
        (PAIR, {"unet.r": True}, "positive integer"),
    ],
)
def test_a_damaged_site_is_named(tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, Any], match: str) -> None:
    with pytest.raises(AdapterError, match=match):
        read(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(metadata)})


def test_what_is_written_has_each_components_configuration(tmp_path: Path) -> None:
    adapter = Adapter(
        {
            "unet.a.q": LowRank(UP, DOWN, 2.0),
            "unet.a.k": LowRank(UP[:, :1], DOWN[:1], 0.5),
            "unet.conv": LowRank(UP, np.ones((2, 12), np.float32), 2.0, layer="conv2d", kernel=(3, 2, 2)),
            "text_encoder.text_model.v": LowRank(UP, DOWN, 1 / 3, bias=np.ones(5, np.float32)),
            "text_encoder.text_model.o": LowRank(UP, DOWN, 1 / 3),
        }
    )
    formats.write(adapter, tmp_path / "folder", format="diffusers")
    target = tmp_path / "folder" / "pytorch_lora_weights.safetensors"
    with safetensors.safe_open(target, "numpy") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
        assert file.metadata()["format"] == "pt"
        assert file.get_slice("unet.conv.lora_A.weight").get_shape() == [2, 3, 2, 2]
        assert file.get_slice("unet.conv.lora_B.weight").get_shape() == [5, 2, 1, 1]
        assert not file.get_tensor("text_encoder.text_model.o.lora_B.bias").any()
    assert config == {
        "unet.r": 2,
        "unet.lora_alpha": 4,
        "unet.rank_pattern": {r"^a\.k": 1},
        "unet.alpha_pattern": {r"^a\.k": 0.5},
        "unet.target_modules": ["a.k", "a.q", "conv"],
        "unet.use_dora": False,
        "unet.lora_bias": False,
        "text_encoder.r": 2,
        "text_encoder.lora_alpha": 2 / 3,
        "text_encoder.rank_pattern": {},
        "text_encoder.alpha_pattern": {},
        "text_encoder.target_modules": ["o", "v"],
        "text_encoder.use_dora": False,
        "text_encoder.lora_bias": True,
    }
    again = formats.read(tmp_path / "folder")
    assert not again.notes
    for site, update in adapter.items():
        np.testing.assert_array_equal(again[site].delta_weight(np.float64), update.delta_weight(np.float64))


def test_an_unedited_file_is_written_as_it_was_and_a_suffix_makes_a_file(tmp_path: Path) -> None:
    adapter = read(tmp_path, PAIR | {"x.lora": UP}, {"made": "here"})
    formats.write(adapter, tmp_path / "copy.safetensors", format="diffusers")
    again = formats.read(tmp_path / "copy.safetensors")
    assert again.provenance.metadata == {"made": "here"}
    assert again.original is not None and adapter.original is not None
    assert {key: value.tobytes() for key, value in again.original.items()} == {
        key: value.tobytes() for key, value in adapter.original.items()
    }


@pytest.mark.parametrize(
    ("sites", "match"),
    [
        ({}, "without sites"),
        ({"unet.q": LowRank(UP, DOWN), "q": LowRank(UP, DOWN)}, "some sites name a component"),
        ({"q": LowRank(UP, DOWN, is_transposed=True)}, "transposed linear"),
        ({"q": LowRank(UP, DOWN, layer="embedding", is_transposed=True)}, "no LoRA for such a layer"),
        ({"lora_unet_q": LowRank(UP, DOWN)}, "lost their dots"),
    ],
)
def test_what_diffusers_cannot_hold_is_refused(tmp_path: Path, sites: dict[str, Any], match: str) -> None:
    with pytest.raises(AdapterError, match=match):
        formats.write(Adapter(sites), tmp_path / "x.safetensors", format="diffusers")
    assert not list(tmp_path.iterdir())


def test_dora_at_some_sites_only_is_refused(tmp_path: Path) -> None:
    magnitude = {"unet.q.lora_magnitude_vector": np.ones(5, np.float32)}
    other = {"unet.k.lora_A.weight": DOWN, "unet.k.lora_B.weight": UP}
    adapter = read(tmp_path, PAIR | magnitude | other)
    assert [update.kind for update in adapter.values()] == ["lora", "dora"]
    with pytest.raises(AdapterError, match="states once for a component"):
        formats.write(adapter, tmp_path / "x.safetensors", format="diffusers", dtype="float16")
