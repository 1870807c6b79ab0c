"""Files that the gguf library writes, and its table of tensor names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.formats.grammars import gguf as grammar

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


@pytest.mark.parametrize("architecture", sorted(grammar._BLOCK_NAMES))
def test_the_names_are_those_of_the_library(architecture: str) -> None:
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[architecture], 3)
    for ours, module in grammar._BLOCK_NAMES[architecture].items():
        assert names.get_name(f"model.layers.2.{module}") == f"blk.2.{ours}"
    assert names.get_name("model.embed_tokens") == "token_embd"
    assert names.get_name("lm_head") in ("output", None)  # None where it is tied to the embedding
