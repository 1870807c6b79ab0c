"""MLX files: layouts, scales, experts, magnitudes, and writing."""

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
A, B = RNG.standard_normal((4, 2)).astype(np.float32), RNG.standard_normal((2, 5)).astype(np.float32)
SITE = "model.layers.0.self_attn.q_proj"
PAIR: dict[str, Any] = {f"{SITE}.lora_a": A, f"{SITE}.lora_b": B}


def read(path: Path, tensors: dict[str, Any], config: dict[str, Any] | None = None) -> Adapter:
    safetensors.numpy.save_file(
        {key: np.ascontiguousarray(value) for key, value in tensors.items()}, path / "adapters.safetensors"
    )
    if config is not None:
        (path / "adapter_config.json").write_text(json.dumps(config))
    return formats.read(path)


def test_the_factors_are_transposed_views_and_the_scale_is_as_stated(tmp_path: Path) -> None:
    adapter = read(tmp_path, PAIR, {"fine_tune_type": "lora", "lora_parameters": {"rank": 99, "scale": 3, "alpha": 16}})
    update = adapter[SITE]
    assert (adapter.provenance.format, update.shape, update.rank, update.scale, update.alpha) == (
        "mlx",
        (5, 4),
        2,
        3.0,
        16.0,
    )
    assert isinstance(update, LowRank) and update.B.base is not None
    np.testing.assert_allclose(update.delta_weight(np.float64), 3.0 * (A.astype(np.float64) @ B).T, rtol=1e-6)
    assert adapter.notes == ()


@pytest.mark.parametrize("config", [None, {"fine_tune_type": "lora"}, {"lora_parameters": {"rank": 2, "scale": None}}])
def test_a_scale_that_is_not_there_is_twenty_and_said_so(tmp_path: Path, config: dict[str, Any] | None) -> None:
    adapter = read(tmp_path, PAIR, config)
    assert adapter[SITE].scale == 20.0
    assert [note.code for note in adapter.notes] == ["scale-unknown"]
    assert "2 in files of December 2023" in adapter.notes[0].text


def test_an_archive_of_the_older_trainer(tmp_path: Path) -> None:
    np.savez(tmp_path / "adapters.npz", **PAIR)
    assert formats.read(tmp_path)[SITE].scale == 20.0


@pytest.mark.parametrize("value", ["10", True, float("nan"), [1], 10**400])
def test_a_scale_that_is_no_number_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(AdapterError, match="scale must be a finite number"):
        read(tmp_path, PAIR, {"lora_parameters": {"scale": value}})


def test_whole_weights_are_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="whole weights"):
        read(tmp_path, {f"{SITE}.weight": A}, {"fine_tune_type": "full"})
    with pytest.raises(AdapterError, match="no LoRA tensors"):
        read(tmp_path, {f"{SITE}.weight": A}, {"fine_tune_type": "lora"})


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({f"{SITE}.lora_a": A}, f"lora_a without lora_b at site {SITE}"),
        ({f"{SITE}.lora_b": B}, f"lora_b without lora_a at site {SITE}"),
        ({f"{SITE}.lora_a": A, f"{SITE}.m": np.ones(5, np.float32)}, "lora_a without lora_b"),
        ({f"{SITE}.lora_a": A, f"{SITE}.lora_b": B.T}, "do not make a product"),
        ({f"{SITE}.lora_a": A[0], f"{SITE}.lora_b": B}, "wrong number of axes"),
        ({f"{SITE}.lora_a": A[:0], f"{SITE}.lora_b": B}, "empty"),
        ({f"{SITE}.lora_a": A.astype(np.int32), f"{SITE}.lora_b": B}, "floating-point"),
        (PAIR | {f"{SITE}.m": np.ones(4, np.float32)}, "fits neither axis"),
        ({f"{SITE}.lora_a": np.ones((2, 3, 4)), f"{SITE}.lora_b": np.ones((3, 5, 3))}, "experts do not make products"),
        ({f"{SITE}.lora_a": np.ones((5, 4)), f"{SITE}.lora_b": np.ones((3, 5, 2))}, "experts do not make products"),
        ({f"{SITE}.lora_a": np.ones((0, 4)), f"{SITE}.lora_b": np.ones((0, 5, 2))}, "experts do not make products"),
    ],
)
def test_a_damaged_site_is_named(tmp_path: Path, tensors: dict[str, Any], match: str) -> None:
    with pytest.raises(AdapterError, match=match) as caught:
        read(tmp_path, tensors)
    assert SITE in str(caught.value)


def test_a_value_that_is_not_finite_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=rf"non-finite value in {SITE}\.lora_a"):
        read(tmp_path, PAIR | {f"{SITE}.lora_a": np.full_like(A, np.nan)}).norm()


def test_an_embedding_is_told_by_its_name(tmp_path: Path) -> None:
    update = read(tmp_path, {"model.embed_tokens.lora_a": A, "model.embed_tokens.lora_b": B})["model.embed_tokens"]
    assert (update.layer, update.base_shape) == ("embedding", (4, 5))
    np.testing.assert_allclose(update.delta_weight(np.float64), 20.0 * (A.astype(np.float64) @ B), rtol=1e-6)


@pytest.mark.parametrize("is_older", [False, True])
def test_each_expert_is_a_site(tmp_path: Path, is_older: bool) -> None:
    a, b = RNG.standard_normal((3, 2, 4)), RNG.standard_normal((3, 5, 2))
    tensors = {"mlp.up.lora_a": a.reshape(6, 4) if is_older else a, "mlp.up.lora_b": b}
    adapter = read(tmp_path, tensors, {"lora_parameters": {"scale": 0.5}})
    assert list(adapter) == ["mlp.up[0]", "mlp.up[1]", "mlp.up[2]"]
    for expert, update in enumerate(adapter.values()):
        np.testing.assert_allclose(update.delta_weight(np.float64), 0.5 * b[expert] @ a[expert], rtol=1e-12)


def test_tensors_of_no_site_are_kept(tmp_path: Path) -> None:
    adapter = read(tmp_path, PAIR | {"norm.m": np.ones(3), "score.weight": A})
    assert sorted(adapter.leftovers) == ["norm.m", "score.weight"]
    assert "unknown-keys" in [note.code for note in adapter.notes]


def written(path: Path, adapter: Adapter, dtype: str | None = None) -> tuple[dict[str, Any], dict[str, Any], Adapter]:
    formats.write(adapter, path, format="mlx", dtype=dtype)
    tensors = safetensors.numpy.load_file(path / "adapters.safetensors")
    return tensors, json.loads((path / "adapter_config.json").read_text()), formats.read(path)


def test_writing_folds_other_scales_into_lora_b(tmp_path: Path) -> None:
    sites = {
        f"model.layers.{layer}.self_attn.{name}": LowRank(B.T, A.T, scale)
        for layer, name, scale in ((0, "q_proj", 2.0), (0, "v_proj", 2.0), (1, "q_proj", 0.5), (1, "k_proj", 0.7))
    }
    sites["lm_head"] = LowRank(B.T[:, :1], A.T[:1], -2.0)
    adapter = Adapter(sites)
    tensors, config, again = written(tmp_path / "out", adapter)
    assert config["fine_tune_type"] == "lora" and config["num_layers"] == -1
    assert config["lora_parameters"] == {
        "rank": 2,
        "scale": 2.0,
        "dropout": 0.0,
        "keys": ["lm_head", "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"],
    }
    assert tensors["model.layers.1.self_attn.q_proj.lora_b"].tobytes() == (B * np.float32(0.25)).tobytes()
    assert tensors["lm_head.lora_a"].shape == (4, 1)
    assert list(again) == sorted(adapter)
    for site, update in adapter.items():
        tolerance = 2e-7 if update.scale == 0.7 else 1e-15
        np.testing.assert_allclose(
            again[site].delta_weight(np.float64), update.delta_weight(np.float64), rtol=0, atol=tolerance * 10
        )


def test_written_experts_magnitudes_and_embeddings_come_back(tmp_path: Path) -> None:
    a, b = RNG.standard_normal((2, 2, 4)), RNG.standard_normal((2, 5, 2))
    experts = Adapter({f"model.layers.0.mlp.up[{e}]": LowRank(b[e], a[e], 4.0 * (e + 1)) for e in (1, 0)})
    tensors, config, again = written(tmp_path / "experts", experts)
    assert tensors["model.layers.0.mlp.up.lora_a"].shape == (2, 2, 4)
    assert config["lora_parameters"]["keys"] == ["mlp.up"]
    for site, update in experts.items():
        np.testing.assert_array_equal(again[site].delta_weight(np.float64), update.delta_weight(np.float64))

    source = PAIR | {
        f"{SITE}.m": np.ones(5, np.float32),
        "embed_tokens.lora_a": A,
        "embed_tokens.lora_b": B,
        "embed_tokens.m": np.arange(4, dtype=np.float32),
    }
    dora = read(tmp_path, source, {"fine_tune_type": "dora", "lora_parameters": {"scale": 2.0}})
    assert dora.provenance.kind == "dora" and {update.kind for update in dora.values()} == {"dora"}
    tensors, config, _ = written(tmp_path / "dora", dora.with_sites(dora.sites))
    assert config["fine_tune_type"] == "dora" and config["lora_parameters"]["scale"] == 2.0
    assert {key: value.tobytes() for key, value in tensors.items()} == {
        key: value.tobytes() for key, value in source.items()
    }


def test_an_unedited_file_is_written_as_it_was(tmp_path: Path) -> None:
    adapter = read(tmp_path, PAIR | {"x": A}, {"fine_tune_type": "lora", "lora_parameters": {"scale": 5}, "model": "m"})
    assert adapter.provenance.base_model == "m"
    tensors, _, _ = written(tmp_path / "out", adapter)
    assert (tmp_path / "out" / "adapter_config.json").read_text() == adapter.provenance.config_text
    assert tensors["x"].tobytes() == A.tobytes()


@pytest.mark.parametrize(
    ("sites", "match"),
    [
        ({}, "without sites"),
        ({"q": LowRank(B.T, A.T, layer="conv2d", kernel=(1, 2, 2))}, "no LoRA for such a layer"),
        ({"q": LowRank(B.T, A.T, is_transposed=True)}, "transposed linear"),
        ({"q": LowRank(B.T, A.T, layer="embedding", is_transposed=True)}, "by their names"),
        ({"model.embed_tokens": LowRank(B.T, A.T)}, "by their names"),
        ({"q": LowRank(B.T, A.T, bias=np.ones(5))}, "no bias"),
        ({"q[0]": LowRank(B.T, A.T), "q[2]": LowRank(B.T, A.T)}, "do not fit together"),
        ({"q": LowRank(B.T, A.T, 1e-30), "k": LowRank(B.T, A.T, 1e30)}, "too large for the dtype"),
    ],
)
def test_what_mlx_cannot_hold_is_refused(tmp_path: Path, sites: dict[str, Any], match: str) -> None:
    with pytest.raises(AdapterError, match=match):
        formats.write(Adapter(sites), tmp_path / "out", format="mlx")
    assert not (tmp_path / "out").exists()
