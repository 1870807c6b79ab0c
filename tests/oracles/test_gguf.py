"""Files that the gguf library writes, and its table of tensor names."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.conversion import convert, relative_error
from lorascope.formats.gguf_names import BLOCK_NAMES, MODEL_TYPES

gguf = pytest.importorskip("gguf")

RNG = np.random.default_rng(0)
ALPHA, RANK, IN, OUT = 12.0, 32, 64, 96


def written(path: Path, tensors: dict[str, Any], kind: str, architecture: str = "qwen2", **numbers: int) -> Path:
    """An adapter as ``convert_lora_to_gguf.py`` writes it."""
    writer = gguf.GGUFWriter(path / "adapter.gguf", architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, ALPHA)
    writer.add_array("adapter.alora.invocation_tokens", [5, 6])
    for name, value in numbers.items():
        writer.add_uint32(f"{architecture}.attention.{name}", value)
    quantised = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        if kind == "F32":
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path / "adapter.gguf"


def permuted(weights: Any, n_head: int) -> Any:
    """``LlamaModel.permute`` of llama.cpp's converter, which it applies to q, k and so to their lora_b."""
    return (
        weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_every_type_is_read_as_the_library_dequantises_it(kind: str, tmp_path: Path) -> None:
    tensors = {
        "blk.0.attn_q.weight.lora_a": RNG.standard_normal((RANK, IN)).astype(np.float32),
        "blk.0.attn_q.weight.lora_b": RNG.standard_normal((OUT, RANK)).astype(np.float32),
    }
    path = written(tmp_path, tensors, kind)
    values = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        for tensor in gguf.GGUFReader(path).tensors
    }
    adapter = formats.read(path)
    update = adapter["model.layers.0.self_attn.q_proj"]
    assert update.scale == ALPHA / RANK
    B, A, scale = update.factors(np.float64)
    np.testing.assert_array_equal(A, values["blk.0.attn_q.weight.lora_a"])
    np.testing.assert_array_equal(B, values["blk.0.attn_q.weight.lora_b"])
    np.testing.assert_allclose(update.delta_weight(np.float64), scale * B @ A)
    assert [note.code for note in adapter.notes] == ["config-variant"]
    assert adapter.provenance.metadata["adapter.alora.invocation_tokens"] == "[5, 6]"


def test_blocks_are_widened_one_site_at_a_time(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {}
    for layer in range(16):
        tensors[f"blk.{layer}.attn_q.weight.lora_a"] = RNG.standard_normal((32, 2048)).astype(np.float32)
        tensors[f"blk.{layer}.attn_q.weight.lora_b"] = RNG.standard_normal((2048, 32)).astype(np.float32)
    path = written(tmp_path, tensors, "Q8_0", "llama", head_count=8)
    pair = 2 * 32 * 2048 * 4
    formats.formats()  # the first read imports all grammars, whose code is no memory of this file
    tracemalloc.start()
    try:
        adapter = formats.read(path)
        assert tracemalloc.get_traced_memory()[1] < pair
        formats.write(adapter, tmp_path / "a", format="peft")
        assert tracemalloc.get_traced_memory()[1] < 6 * pair
    finally:
        tracemalloc.stop()
    values = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        for tensor in gguf.GGUFReader(path).tensors
    }
    report = convert(path, tmp_path / "b.safetensors", to="kohya", is_scale_folded=True, is_loss_allowed=True)
    assert [loss.what for loss in report.lost] == ["config-variant"]  # the invocation tokens of the fixture
    assert report.expanded == () and report.relative_error < 1e-6
    for target in ("a", "b.safetensors"):
        again = formats.read(tmp_path / target)
        for layer in (0, 15):
            site = f"model.layers.{layer}.self_attn.q_proj"
            B, A = (values[f"blk.{layer}.attn_q.weight.lora_{half}"] for half in "ba")
            rows = permuted(np.arange(2048), 8)  # row i of the file is row rows[i] of the published model
            published = np.empty_like(B)
            published[rows] = B
            found = again[site].delta_weight(np.float64)
            expected = ALPHA / 32 * published @ A
            assert np.abs(found - expected).max() < (1e-12 if target == "a" else 1e-6) * np.abs(expected).max()
            assert adapter[site].norm() == pytest.approx(np.linalg.norm(expected), rel=1e-12)
            spectrum = adapter[site].spectrum()
            assert spectrum is not None and np.linalg.norm(spectrum) == pytest.approx(adapter[site].norm())


def test_a_mapping_reads_blocks(tmp_path: Path) -> None:
    tensors = {"x.down": RNG.standard_normal((32, 64)).astype(np.float32), "x.up": np.ones((64, 32), np.float32)}
    path = written(tmp_path, tensors, "Q8_0")
    adapter = formats.read(path, mapping={"{site}.up": "B", "{site}.down": "A"}, scale=1.0)
    values = {one.name: gguf.quants.dequantize(one.data, one.tensor_type) for one in gguf.GGUFReader(path).tensors}
    np.testing.assert_array_equal(adapter["x"].stored["A"], values["x.down"])


def test_the_rows_of_a_llama_are_those_of_the_published_model(tmp_path: Path) -> None:
    A = RNG.standard_normal((RANK, IN)).astype(np.float32)
    Bs = {
        "q": RNG.standard_normal((OUT, RANK)).astype(np.float32),
        "k": RNG.standard_normal((32, RANK)).astype(np.float32),
    }
    heads = {"q": 6, "k": 2}
    tensors: dict[str, Any] = {}
    for name, B in Bs.items():
        tensors[f"blk.1.attn_{name}.weight.lora_a"] = A
        tensors[f"blk.1.attn_{name}.weight.lora_b"] = permuted(B, heads[name])
    adapter = formats.read(written(tmp_path, tensors, "F32", "llama", head_count=6, head_count_kv=2))
    for name, B in Bs.items():
        np.testing.assert_array_equal(adapter[f"model.layers.1.self_attn.{name}_proj"].stored["B"], B)


@pytest.mark.parametrize("architecture", sorted(BLOCK_NAMES))
def test_the_names_are_those_of_the_library(architecture: str) -> None:
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[architecture], 3)
    for ours, module in BLOCK_NAMES[architecture].items():
        assert names.get_name(f"model.layers.2.{module}") == f"blk.2.{ours}"
    assert names.get_name("model.embed_tokens") == "token_embd"
    assert names.get_name("lm_head") in ("output", None)  # None where it is tied to the embedding


def test_model_types_stand_for_architectures_of_the_library() -> None:
    assert set(MODEL_TYPES.values()) <= set(gguf.MODEL_ARCH_NAMES.values())


@pytest.mark.parametrize("uses_rslora", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_library_finds_in_our_files_what_llama_cpp_computes_with(
    dtype: str, uses_rslora: bool, tmp_path: Path
) -> None:
    """alpha / columns of lora_b · lora_b · lora_a is ΔW in llama.cpp's order of rows, whatever PEFT's patterns say."""
    config = {"model_type": "mistral", "num_attention_heads": 6, "num_key_value_heads": 2}
    shapes = {"q_proj": (OUT, 8), "k_proj": (32, 8), "v_proj": (32, 4), "o_proj": (IN, 8)}
    sites = {
        f"model.layers.1.self_attn.{name}": LowRank(
            RNG.standard_normal((out, rank)).astype(dtype),
            RNG.standard_normal((rank, IN)).astype(dtype),
            16 / (rank**0.5 if uses_rslora else 8) * (3.0 if name == "v_proj" else 1.0),
        )
        for name, (out, rank) in shapes.items()
    }
    formats.write(Adapter(dict(sites)), tmp_path / "peft")
    report = convert(tmp_path / "peft", tmp_path / "a.gguf", to="gguf", base_config=config)
    assert report.lost == () and report.relative_error <= 2.0**-22
    assert report.folded == ("model.layers.1.self_attn.v_proj",)

    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert (values["general.type"], values["adapter.type"], values["general.architecture"]) == (
        "adapter",
        "lora",
        "llama",
    )
    assert reader.fields["adapter.lora.alpha"].types == [gguf.GGUFValueType.FLOAT32]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert set(tensors) == {f"{names.get_name(site)}.weight.lora_{half}" for site in sites for half in "ab"}
    heads = {"q_proj": 6, "k_proj": 2}
    for site, update in sites.items():
        a, b = (tensors[f"{names.get_name(site)}.weight.lora_{half}"] for half in "ab")
        (out, in_), rank = update.shape, update.rank
        assert (list(a.shape), list(b.shape)) == ([in_, rank], [rank, out])  # ggml's order of dimensions
        computed = values["adapter.lora.alpha"] / b.shape[0] * b.data.astype(np.float64) @ a.data.astype(np.float64)
        expected = update.delta_weight(np.float64)
        if (name := site.rpartition(".")[2]) in heads:
            expected = permuted(expected, heads[name])
        np.testing.assert_allclose(computed, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())

    convert(tmp_path / "a.gguf", tmp_path / "back", to="peft")
    back = formats.read(tmp_path / "back")
    assert set(back) == set(sites)
    assert max(relative_error(update, back[site]) for site, update in sites.items()) <= 2.0**-22
