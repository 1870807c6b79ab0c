"""Baking into real checkpoints, against what PEFT merges and against the model that an adapter is applied to."""

from __future__ import annotations

import json
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.conversion import bake
from lorascope.errors import AdapterError, OutputError

EPS = float(np.finfo(np.float32).eps)


def tiny_llama(folder: Path, **options: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder, **options)
    return model


def trained(model: Any, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """A PEFT adapter with random factors in ``folder``, and the weights that PEFT merges it to."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=5, **options))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload().state_dict()


def weights_in(folder: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors.numpy.load_file(file)
    return tensors


@pytest.mark.parametrize("shards", ["1KB", "1GB"])
def test_a_baked_checkpoint_is_what_peft_merges(tmp_path: Path, shards: str) -> None:
    model = tiny_llama(tmp_path / "base", max_shard_size=shards)
    targets = ["q_proj", "down_proj", "embed_tokens"]
    merged = trained(model, tmp_path / "adapter", target_modules=targets, modules_to_save=["lm_head"])
    report = bake(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    before, after = weights_in(tmp_path / "base"), weights_in(tmp_path / "out")
    assert set(before) == set(after)
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert len(changed) == report.tensors == 2 * 2 + 2 and report.sites == 5
    assert set(report.replaced) == {"lm_head.weight", "model.embed_tokens.weight"}  # PEFT saves both whole
    for name, tensor in after.items():
        # both round A·B, the scale and the sum once; the sums differ in order
        np.testing.assert_allclose(tensor, merged[name].numpy(), rtol=0, atol=16 * EPS * np.abs(tensor).max())
    assert 0 < report.rounding < EPS
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.lm_head.weight, merged["lm_head.weight"])


def test_gpt2_keeps_its_weights_transposed(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "base")
    # PEFT saves fan_in_fan_out as the user gave it, and transposes for this class whatever it says
    merged = trained(model, tmp_path / "adapter", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": False}))
    report = bake(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    after = weights_in(tmp_path / "out")
    assert report.tensors == 3
    for name, tensor in after.items():
        # the checkpoint leaves out the model's own prefix
        expected = merged[name if name in merged else f"transformer.{name}"].numpy()
        np.testing.assert_allclose(tensor, expected, rtol=0, atol=16 * EPS * max(np.abs(tensor).max(), 1))


def test_several_adapters_and_weights_add_up(tmp_path: Path) -> None:
    weight = np.zeros((4, 3), np.float32)
    safetensors.numpy.save_file({"q.weight": weight, "other": np.ones(2, np.int64)}, tmp_path / "base.safetensors")
    one = Adapter({"q": LowRank(np.ones((4, 1)), np.ones((1, 3)))})
    two = Adapter({"q": LowRank(np.ones((4, 1)), np.ones((1, 3)), scale=3.0)})
    bake(tmp_path / "base.safetensors", [one, two], tmp_path / "out.safetensors", weights=[1.0, -0.5])
    after = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    np.testing.assert_array_equal(after["q.weight"], np.full((4, 3), -0.5, np.float32))
    assert after["other"].dtype == np.int64


def test_experts_and_rows_are_parts_of_one_tensor(tmp_path: Path) -> None:
    base = {"mlp.experts.up": np.zeros((2, 4, 3), np.float32), "qkv.weight": np.zeros((6, 3), np.float32)}
    safetensors.numpy.save_file(base, tmp_path / "base.safetensors")
    update = LowRank(np.ones((4, 1)), np.ones((1, 3)))
    rows = LowRank(np.ones((2, 1)), np.ones((1, 3)))
    report = bake(
        tmp_path / "base.safetensors",
        [Adapter({"mlp.experts.up[1]": update, "qkv[0:2]": rows, "qkv[4:6]": rows})],
        tmp_path / "out.safetensors",
    )
    after = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert after["mlp.experts.up"].sum(axis=(1, 2)).tolist() == [0.0, 12.0]
    assert after["qkv.weight"].sum(axis=1).tolist() == [3.0, 3.0, 0.0, 0.0, 3.0, 3.0]
    assert report.tensors == 2
    with pytest.raises(AdapterError, match="no such part"):
        bake(tmp_path / "base.safetensors", [Adapter({"qkv[5:7]": rows})], tmp_path / "x.safetensors")


def test_half_precision_is_rounded_once_and_said(tmp_path: Path) -> None:
    import ml_dtypes

    base = np.ones((8, 8), ml_dtypes.bfloat16)
    safetensors.numpy.save_file({"q.weight": base}, tmp_path / "base.safetensors")
    update = LowRank(np.full((8, 1), 0.01, np.float32), np.ones((1, 8), np.float32))
    report = bake(tmp_path / "base.safetensors", [Adapter({"q": update})], tmp_path / "out.safetensors")
    after = formats.checkpoint.Checkpoint.open(tmp_path / "out.safetensors").tensors["q.weight"]
    expected = np.asarray(np.float32(1) + np.float32(0.01)).astype(ml_dtypes.bfloat16)
    assert (after == expected).all()
    assert report.rounding == pytest.approx(abs(float(expected) - 1.01) / 0.01, rel=1e-3)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    base = {"model.q.weight": np.zeros((4, 3), np.float32), "bert.q.weight": np.zeros((4, 3), np.float32)}
    safetensors.numpy.save_file({**base, "z.weight": np.zeros((2, 2), np.int8)}, tmp_path / "base.safetensors")
    update = LowRank(np.ones((4, 1)), np.ones((1, 3)))
    small = LowRank(np.ones((2, 1)), np.ones((1, 2)))
    for sites, text in (
        ({"q": update}, "several weights of the base fit this site"),
        ({"model.k": update}, "the base model has no such layer"),
        ({"model.q": small}, "does not fit the weight of the base"),
        ({"z": small}, "quantised"),
    ):
        with pytest.raises(AdapterError, match=text):
            bake(tmp_path / "base.safetensors", [Adapter(sites)], tmp_path / "out.safetensors")
        assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(AdapterError, match="no base model here"):
        bake(tmp_path / "nothing", [Adapter({"model.q": update})], tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="written as a file"):
        bake(tmp_path / "base.safetensors", [Adapter({"model.q": update})], tmp_path / "there")
    with pytest.raises(OutputError):
        bake(tmp_path / "base.safetensors", [Adapter({"model.q": update})], tmp_path / "base.safetensors")


def test_saved_tensors_without_a_place_are_refused_or_left_out(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"q.weight": np.zeros((4, 3), np.float32)}, tmp_path / "base.safetensors")
    adapter = Adapter(
        {"q": LowRank(np.ones((4, 1)), np.ones((1, 3)))}, leftovers={"base_model.model.score.weight": np.ones((2, 2))}
    )
    with pytest.raises(AdapterError, match=r"score.weight.*no place in the base"):
        bake(tmp_path / "base.safetensors", [adapter], tmp_path / "out.safetensors")
    report = bake(tmp_path / "base.safetensors", [adapter], tmp_path / "out.safetensors", is_loss_allowed=True)
    assert report.tensors == 1 and report.replaced == ()


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "oft", "hra"])
def test_beside_the_widened_weight_there_are_blocks_only(kind: str, tmp_path: Path) -> None:
    size, name = 3072, "layers.0.q_proj"
    rng = np.random.default_rng(0)
    prefix, numbers = f"base_model.model.{name}.", partial(rng.standard_normal, dtype=np.float32)
    config: dict[str, Any] = {"peft_type": kind.upper(), "r": 2, "lora_alpha": 2, "alpha": 2, "oft_block_size": 32}
    tensors: dict[str, Any] = {}
    if kind in ("lora", "dora"):
        config |= {"peft_type": "LORA", "use_dora": kind == "dora"}
        tensors = {"lora_A.weight": numbers((2, size)), "lora_B.weight": numbers((size, 2))}
        tensors |= {"lora_magnitude_vector": numbers(size)} if kind == "dora" else {}
    elif kind == "loha":
        tensors = {f"hada_w{half}_a": numbers((size, 2)) for half in (1, 2)}
        tensors |= {f"hada_w{half}_b": numbers((2, size)) for half in (1, 2)}
    elif kind == "lokr":
        tensors = {"lokr_w1": numbers((16, 16)), "lokr_w2": numbers((size // 16, size // 16))}
    elif kind == "oft":
        config |= {"r": 0}
        tensors = {"oft_R.weight": numbers((size // 32, 32 * 31 // 2)) * np.float32(0.01)}
    else:
        tensors = {"hra_u": numbers((size, 2))}
    named = {prefix + key: tensor for key, tensor in tensors.items()}
    (tmp_path / "adapter").mkdir()
    safetensors.numpy.save_file(named, tmp_path / "adapter/adapter_model.safetensors")
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    base = tmp_path / "base.safetensors"
    safetensors.numpy.save_file({f"{name}.weight": np.ones((size, size), np.float16)}, base)
    (site,) = formats.read(tmp_path / "adapter").values()
    assert site.kind == kind
    tracemalloc.start()
    try:
        bake(base, [tmp_path / "adapter"], tmp_path / "out.safetensors")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    widened = 8 * size * size  # a second such copy would make it twice as much
    assert widened < peak < 1.9 * widened
