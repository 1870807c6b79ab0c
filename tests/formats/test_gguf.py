"""GGUF files, made byte by byte here: what is read, and every lie that a header can tell."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter
from lorascope.errors import AdapterError
from lorascope.formats.gguf_file import MAX_KEPT, read_gguf

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 4)).astype(np.float32), RNG.standard_normal((8, 2)).astype(np.float32)
TYPES = {"float32": 0, "float16": 1, "bfloat16": 30, "float64": 28}
FIELDS = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "qwen2", "adapter.lora.alpha": 6.0}
PAIR = {"blk.3.ffn_up.weight.lora_a": A, "blk.3.ffn_up.weight.lora_b": B}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def field(value: Any) -> bytes:
    if isinstance(value, bytes):  # as it is
        return value
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(item) for item in value)
    return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)


def info(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)


def file(
    fields: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
    *,
    version: int = 3,
    infos: bytes | None = None,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    fields, tensors = FIELDS if fields is None else fields, PAIR if tensors is None else tensors
    described, data = b"", b""
    for name, tensor in tensors.items():
        data += b"\0" * (-len(data) % alignment)
        described += info(name, tensor.shape, TYPES[tensor.dtype.name], len(data))
        data += tensor.tobytes()
    tensor_count, field_count = counts or (len(tensors), len(fields))
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, field_count)
    head += b"".join(text(key) + field(value) for key, value in fields.items())
    head += described if infos is None else infos
    return head + b"\0" * (-len(head) % alignment) + data


def read(path: Path, *args: Any, **options: Any) -> Adapter:
    (path / "adapter.gguf").write_bytes(file(*args, **options))
    return formats.read(path / "adapter.gguf")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("version", [2, 3])
def test_an_adapter_of_each_type(tmp_path: Path, dtype: Any, version: int) -> None:
    tensors = {key: value.astype(dtype) for key, value in PAIR.items()}
    adapter = read(tmp_path, None, tensors, version=version)
    update = adapter["model.layers.3.mlp.up_proj"]
    assert (adapter.provenance.format, update.scale, update.alpha, update.dtype) == (
        "gguf",
        3.0,
        6.0,
        np.dtype(dtype).name,
    )
    B, A = (tensors[key].astype(np.float64) for key in reversed(tensors))
    np.testing.assert_allclose(update.delta_weight(np.float64), 3.0 * B @ A, rtol=1e-12)
    assert adapter.notes == ()


def test_a_large_file_is_mapped(tmp_path: Path) -> None:
    down = RNG.standard_normal((2, 200_000)).astype(np.float32)
    adapter = read(tmp_path, None, PAIR | {"blk.3.ffn_up.weight.lora_a": down})
    np.testing.assert_array_equal(adapter["model.layers.3.mlp.up_proj"].stored["A"], down)


def test_alpha_nought_or_missing_is_scale_one(tmp_path: Path) -> None:
    without = {key: value for key, value in FIELDS.items() if key != "adapter.lora.alpha"}
    for fields in (without, FIELDS | {"adapter.lora.alpha": 0.0}):
        update = read(tmp_path, fields)["model.layers.3.mlp.up_proj"]
        assert (update.scale, update.alpha) == (1.0, None)


def test_the_token_embedding(tmp_path: Path) -> None:
    a, b = RNG.standard_normal((7, 2)).astype(np.float32), RNG.standard_normal((4, 2)).astype(np.float32)
    adapter = read(tmp_path, None, {"token_embd.weight.lora_a": a, "token_embd.weight.lora_b": b})
    update = adapter["model.embed_tokens"]
    assert (update.layer, update.base_shape) == ("embedding", (7, 4))
    np.testing.assert_allclose(update.delta_weight(np.float64), 3.0 * a.astype(np.float64) @ b.T, rtol=1e-6)


def test_experts_are_sites_of_their_own(tmp_path: Path) -> None:
    a, b = RNG.standard_normal((3, 2, 4)), RNG.standard_normal((3, 5, 2))
    adapter = read(tmp_path, None, {"blk.0.ffn_up_exps.weight.lora_a": a, "blk.0.ffn_up_exps.weight.lora_b": b})
    assert list(adapter) == [f"blk.0.ffn_up_exps[{expert}]" for expert in range(3)]
    for expert, update in enumerate(adapter.values()):
        np.testing.assert_allclose(update.delta_weight(np.float64), 3.0 * b[expert] @ a[expert], rtol=1e-12)
    assert [note.code for note in adapter.notes] == ["gguf-names"]


def test_a_row_that_lost_its_axis(tmp_path: Path) -> None:
    adapter = read(tmp_path, None, {"blk.0.ffn_up.weight.lora_a": A[0], "blk.0.ffn_up.weight.lora_b": B[:, :1]})
    assert adapter["model.layers.0.mlp.up_proj"].shape == (8, 4)


def test_an_unknown_architecture_keeps_its_names(tmp_path: Path) -> None:
    adapter = read(tmp_path, FIELDS | {"general.architecture": "bloom"})
    assert list(adapter) == ["blk.3.ffn_up"]
    assert [note.code for note in adapter.notes] == ["gguf-names"]


def test_other_tensors_and_fields_are_kept(tmp_path: Path) -> None:
    extra = {"general.name": "n", "a.flag": True, "a.list": [1, -2], "a.words": ["x", "y"], "a.long": [0] * 5000}
    fields = FIELDS | extra | {"adapter.alora.invocation_tokens": [7], "general.base_model.0.name": "Base"}
    adapter = read(tmp_path, fields, PAIR | {"blk.0.attn_norm.weight": A[0]})
    assert list(adapter.leftovers) == ["blk.0.attn_norm.weight"]
    assert adapter.provenance.base_model == "Base"
    assert [note.code for note in adapter.notes] == ["config-variant", "unknown-keys"]
    metadata = adapter.provenance.metadata
    assert {key: metadata[key] for key in extra} == {
        "general.name": "n",
        "a.flag": "true",
        "a.list": "[1, -2]",
        "a.words": '["x", "y"]',
        "a.long": "5000 values",
    }
    assert metadata["adapter.lora.alpha"] == "6.0"
    assert read(tmp_path, FIELDS | {"w": ["x"] * (MAX_KEPT + 1)}).provenance.metadata["w"] == f"{MAX_KEPT + 1} strings"


def test_rows_of_q_and_k_are_put_back_where_the_heads_are_known(tmp_path: Path) -> None:
    """8 rows in 2 heads: in a head of 4 rows llama.cpp wants 0, 2, 1, 3."""
    fields = FIELDS | {"general.architecture": "llama"}
    pairs = {f"blk.0.attn_{name}.weight.lora_{half}": value for name in "qkv" for half, value in (("a", A), ("b", B))}
    adapter = read(tmp_path, fields, pairs)
    assert list(adapter) == ["blk.0.attn_q", "blk.0.attn_k", "model.layers.0.self_attn.v_proj"]
    assert [note.code for note in adapter.notes] == ["permuted-rows"]

    heads = {"llama.attention.head_count": 2, "llama.attention.head_count_kv": 1}
    adapter = read(tmp_path, fields | heads, pairs)
    assert adapter.notes == ()
    order = {"q": [0, 2, 1, 3, 4, 6, 5, 7], "k": [0, 2, 4, 6, 1, 3, 5, 7], "v": range(8)}
    for name, rows in order.items():
        np.testing.assert_array_equal(adapter[f"model.layers.0.self_attn.{name}_proj"].stored["B"], B[list(rows)])

    with pytest.raises(AdapterError, match="cannot be cut into the heads"):
        read(tmp_path, fields | {"llama.attention.head_count": 3}, pairs)
    for count in ([2, 2], 2.0, True, "two", 0):
        assert "blk.0.attn_q" in read(tmp_path, fields | {"llama.attention.head_count": count}, pairs)


def test_a_configuration_beside_the_file_does_not_decide(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 99}')
    assert read(tmp_path).provenance.format == "gguf"


@pytest.mark.parametrize(
    ("fields", "tensors", "match"),
    [
        ({"general.type": "model"}, PAIR, "no LoRA adapter"),
        (FIELDS | {"adapter.type": "x"}, PAIR, "no LoRA adapter"),
        (FIELDS | {"adapter.lora.alpha": float("nan")}, PAIR, "alpha must be"),
        (FIELDS | {"adapter.lora.alpha": "six"}, PAIR, "alpha must be"),
        (FIELDS, {"blk.0.ffn_up.weight.lora_a": A}, "no partner"),
        (FIELDS, PAIR | {"blk.3.ffn_up.weight.lora_b": B.T.copy()}, "do not make a product"),
        (FIELDS, PAIR | {"blk.3.ffn_up.weight.lora_b": np.ones((2, 8, 2), np.float32)}, "do not make a product"),
        (FIELDS, PAIR | {"blk.3.ffn_up.weight.lora_a": A[:, :0]}, "empty"),
        (FIELDS | {"general.alignment": 48}, PAIR, "power of two"),
        (FIELDS | {"general.alignment": 0}, PAIR, "power of two"),
        (FIELDS | {"general.alignment": "x"}, PAIR, "power of two"),
        (FIELDS, {"n" * 64: A}, "too long"),
        (FIELDS, {"x": np.ones((1, 1, 1, 1, 1), np.float32)}, "too many axes"),
        (FIELDS | {"x": struct.pack("<I", 13)}, PAIR, "unknown type"),
        (FIELDS | {"x": struct.pack("<IIQ", 9, 9, 1)}, PAIR, "of arrays"),
        (FIELDS | {"x": struct.pack("<IIQ", 9, 4, 1 << 62)}, PAIR, "does not fit"),
        (FIELDS | {"x": struct.pack("<IIQ", 9, 8, 1 << 40)}, PAIR, "does not fit"),
        (FIELDS | {"x": struct.pack("<IQ", 8, 1 << 63)}, PAIR, "does not fit"),
        (FIELDS | {"x": struct.pack("<IQ", 8, 1) + b"\xff"}, PAIR, "not UTF-8"),
    ],
)
def test_a_wrong_file_gives_one_error(tmp_path: Path, fields: Any, tensors: Any, match: str) -> None:
    with pytest.raises(AdapterError, match=match) as caught:
        read(tmp_path, fields, tensors)
    assert "adapter.gguf" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"version": 1}, "version of GGUF"),
        ({"version": 4}, "version of GGUF"),
        ({"version": 0x03000000}, "big-endian"),
        ({"counts": (1 << 60, 4)}, "does not fit"),
        ({"counts": (2, 1 << 60)}, "does not fit"),
        ({"infos": info("x", (2, 4), 0, 0) * 2}, "same name"),
        ({"infos": info("x", (2, 4), 0, 0) + info("y", (2, 4), 0, 0)}, "overlapping"),
        ({"infos": info("x", (2, 4), 0, 0) + info("y", (2, 4), 0, 64)}, "overlapping"),
        ({"infos": info("x", (1 << 40, 1 << 40), 0, 0) + info("y", (2, 4), 0, 32)}, "truncated"),
        ({"infos": info("x", (1 << 63, 0), 0, 0) + info("y", (1, 1), 0, 0)}, "impossible"),
        ({"infos": info("x", (2, 4), 2, 0) + info("y", (2, 4), 0, 32)}, "type that is not read"),
        ({"infos": info("x", (2, 4), 8, 0) + info("y", (2, 4), 0, 32)}, "multiple of 32"),
        ({"infos": info("x", (), 8, 0) + info("y", (2, 4), 0, 32)}, "multiple of 32"),
    ],
)
def test_a_lie_in_the_header_is_found(tmp_path: Path, options: Any, match: str) -> None:
    with pytest.raises(AdapterError, match=match):
        read(tmp_path, **options)


def test_two_fields_of_one_name(tmp_path: Path) -> None:
    data = file({"general.type": "adapter", "general.typf": "adapter"}).replace(b"typf", b"type")
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(AdapterError, match="two fields"):
        read_gguf(tmp_path / "x.gguf")


def test_every_cut_gives_one_error(tmp_path: Path) -> None:
    data = file()
    path = tmp_path / "x.gguf"
    for length in range(4, len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(AdapterError):
            formats.read(path)


def test_damaged_bytes_give_an_adapter_or_one_error(tmp_path: Path) -> None:
    data = file()
    path = tmp_path / "x.gguf"
    for _ in range(600):
        damaged = bytearray(data)
        for place in RNG.integers(4, len(data), 3):
            damaged[place] = RNG.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(AdapterError):
            formats.read(path).norm()
