"""GGUF files that are written: what llama.cpp finds in them, what is kept, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank, Provenance, Update
from lorascope.conversion import convert, relative_error
from lorascope.errors import AdapterError
from lorascope.formats.gguf_file import read_gguf
from lorascope.formats.gguf_output import write_gguf
from lorascope.formats.parametrisation import Parts, built

RNG = np.random.default_rng(0)
LLAMA = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
Q, K, UP = (f"model.layers.0.{end}" for end in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"))


def low_rank(out: int = 16, in_: int = 6, rank: int = 2, scale: float = 1.0, dtype: Any = np.float32) -> LowRank:
    B, A = RNG.standard_normal((out, rank)), RNG.standard_normal((rank, in_))
    return LowRank(B.astype(dtype), A.astype(dtype), scale)


def written(folder: Path, sites: dict[str, Update], config: Any = LLAMA, dtype: Any = None) -> Any:
    formats.write(Adapter(sites, Provenance(base_config=config)), folder / "a.gguf", format="gguf", dtype=dtype)
    return read_gguf(folder / "a.gguf")


def test_the_fields_and_tensors_that_llama_cpp_looks_for(tmp_path: Path) -> None:
    file = written(tmp_path, {Q: low_rank(scale=4.0), UP: low_rank(12, scale=4.0)})
    assert dict(file.metadata) == {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": "8.0",
        "llama.attention.head_count": "4",
        "llama.attention.head_count_kv": "2",
    }
    names = [f"blk.0.{name}.weight.lora_{half}" for name in ("attn_q", "ffn_up") for half in "ab"]
    assert list(file.tensors) == names


@pytest.mark.parametrize("site", [Q, K])
def test_rows_of_q_and_k_go_where_the_rotary_embedding_of_llama_cpp_looks(site: str, tmp_path: Path) -> None:
    """Row h · (n/2) + i of a head of n rows goes to 2 · i + h."""
    update = low_rank(16)
    heads = 4 if site == Q else 2
    (B,) = (value for key, value in written(tmp_path, {site: update}).tensors.items() if key.endswith("lora_b"))
    rows = 16 // heads
    for row in range(16):
        head, inside = divmod(row, rows)
        half, index = divmod(inside, rows // 2)
        np.testing.assert_array_equal(B[head * rows + 2 * index + half], update.B[row])
    again = formats.read(tmp_path / "a.gguf")
    assert list(again) == [site] and relative_error(update, again[site]) == 0


def test_one_alpha_serves_ranks_that_differ_and_the_rest_is_folded(tmp_path: Path) -> None:
    sites = {
        f"model.layers.{index}.mlp.up_proj": low_rank(rank=rank, scale=scale, dtype=np.float16)
        for index, (rank, scale) in enumerate([(2, 4.0), (8, 1.0), (4, 2.0), (4, 8.0), (4, 0.3), (2, 0.0)])
    }
    adapter = Adapter(dict(sites), Provenance(base_config=LLAMA))
    report = convert(adapter, tmp_path / "a.gguf", to="gguf")
    assert report.folded == tuple(sites)[3:] and report.lost == ()
    assert report.relative_error <= float(np.finfo(np.float32).eps)
    file = read_gguf(tmp_path / "a.gguf")
    assert file.metadata["adapter.lora.alpha"] == "8.0"
    Bs = [file.tensors[f"blk.{index}.ffn_up.weight.lora_b"] for index in range(6)]
    for B, update in zip(Bs[:3], sites.values(), strict=False):
        np.testing.assert_array_equal(B, update.B)
    assert [B.dtype.name for B in Bs] == ["float16"] * 4 + ["float32", "float16"]
    np.testing.assert_array_equal(Bs[3], sites["model.layers.3.mlp.up_proj"].B * np.float16(4))


@pytest.mark.parametrize(("stored", "kept"), [("float64", "float32"), ("float8_e4m3fn", "float32"), ("bfloat16",) * 2])
def test_dtypes_that_llama_cpp_does_not_compute_with_become_float32(stored: str, kept: str, tmp_path: Path) -> None:
    file = written(tmp_path, {UP: low_rank(dtype=getattr(ml_dtypes, stored, stored))})
    assert {tensor.dtype.name for tensor in file.tensors.values()} == {kept}
    with pytest.raises(AdapterError, match="does not compute with this dtype"):
        written(tmp_path, {UP: low_rank()}, dtype=np.float64)


def test_the_token_embedding_is_stored_turned(tmp_path: Path) -> None:
    update = LowRank(RNG.standard_normal((4, 2)), RNG.standard_normal((2, 7)), 2.0, "embedding", is_transposed=True)
    file = written(tmp_path, {"model.embed_tokens": update})
    assert [tensor.shape for tensor in file.tensors.values()] == [(7, 2), (4, 2)]
    again = formats.read(tmp_path / "a.gguf")["model.embed_tokens"]
    assert again.base_shape == (7, 4) and relative_error(update, again) < 1e-6
    with pytest.raises(AdapterError, match="no LoRA for such a layer"):
        written(tmp_path, {"model.embed_tokens": low_rank()})


def test_experts_under_names_of_llama_cpp_are_one_tensor(tmp_path: Path) -> None:
    sites: dict[str, Update] = {f"blk.0.ffn_up_exps[{expert}]": low_rank() for expert in range(3)}
    file = written(tmp_path, sites, {"model_type": "qwen3moe"})
    assert [tensor.shape for tensor in file.tensors.values()] == [(3, 2, 6), (3, 16, 2)]
    again = formats.read(tmp_path / "a.gguf")
    assert {site: relative_error(sites[site], again[site]) for site in again} == dict.fromkeys(sites, 0.0)
    del sites["blk.0.ffn_up_exps[1]"]
    with pytest.raises(AdapterError, match="do not fit together"):
        written(tmp_path, sites, {"model_type": "qwen3moe"})


DORA = built("dora", Parts("x", {"B": np.ones((4, 1)), "A": np.ones((1, 3)), "magnitude": np.ones(4)}))
CONVOLUTION = LowRank(np.ones((4, 1)), np.ones((1, 9)), layer="conv2d", kernel=(1, 3, 3))
BIASED = LowRank(np.ones((4, 1)), np.ones((1, 3)), bias=np.ones(4))
TURNED = LowRank(np.ones((4, 1)), np.ones((1, 3)), is_transposed=True)


@pytest.mark.parametrize(
    ("sites", "config", "match"),
    [
        ({Q: low_rank()}, {}, "states the architecture of its base"),
        ({Q: low_rank()}, {"model_type": 3}, "states the architecture of its base"),
        ({Q: low_rank()}, {"model_type": "llama"}, r"numbers of heads are not known(.|\n)*--base"),
        ({Q: low_rank()}, LLAMA | {"num_attention_heads": True}, "numbers of heads are not known"),
        ({Q: low_rank(6)}, LLAMA, "cannot be cut into the heads"),
        ({"h.0.attn.c_attn": low_rank()}, {"model_type": "gpt2"}, "no tensor of llama.cpp's gpt2 is known"),
        ({"unet.q": low_rank()}, LLAMA, "no tensor of llama.cpp's llama is known"),
        ({UP: low_rank(), "blk.0.ffn_up": low_rank()}, LLAMA, "two sites are one tensor"),
        ({UP: DORA}, LLAMA, "hold only LoRA"),
        ({UP: CONVOLUTION}, LLAMA, "no LoRA for such a layer"),
        ({UP: BIASED}, LLAMA, "no LoRA for such a layer"),
        ({UP: TURNED}, LLAMA, "no layer of this layout"),
        ({}, LLAMA, "without sites"),
    ],
)
def test_what_has_no_place_is_refused(sites: Any, config: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=match):
        written(tmp_path, sites, config)
    assert not list(tmp_path.iterdir())


def test_q_and_k_are_no_loss_that_could_be_allowed(tmp_path: Path) -> None:
    """Without the numbers of heads nothing is written: an adapter without q and k is another one."""
    formats.write(Adapter({Q: low_rank(), UP: low_rank()}), tmp_path / "a")
    config = {"model_type": "llama"}
    with pytest.raises(AdapterError, match="numbers of heads"):
        convert(tmp_path / "a", tmp_path / "b.gguf", to="gguf", base_config=config, is_loss_allowed=True)


def test_a_configuration_of_a_model_with_images_counts_by_its_text_part(tmp_path: Path) -> None:
    config = {"model_type": "llava", "text_config": LLAMA}
    assert written(tmp_path, {Q: low_rank()}, config).metadata["llama.attention.head_count_kv"] == "2"
    alone = {"model_type": "llama", "num_attention_heads": 4}
    assert written(tmp_path, {Q: low_rank()}, alone).metadata["llama.attention.head_count_kv"] == "4"


def test_an_unedited_file_is_copied_byte_for_byte(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "qwen2"}
    fields |= {"adapter.lora.alpha": 4.0, "general.name": "7", "x.long": list(range(5000)), "x.number": 7}
    tensors = {"blk.0.ffn_up.weight.lora_a": low_rank().A, "blk.0.ffn_up.weight.lora_b": low_rank().B}
    write_gguf(tmp_path / "a.gguf", fields, tensors | {"blk.0.attn_norm.weight": np.ones(6, np.float32)})
    report = convert(tmp_path / "a.gguf", tmp_path / "b.gguf", to="gguf")
    assert report.is_identical and report.dropped == report.lost == ()
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()

    # edited: the other fields keep type and value, tensors of no site stay
    convert(tmp_path / "a.gguf", tmp_path / "c.gguf", to="gguf", dtype="float16", base_name="owner/base")
    one, two = (read_gguf(tmp_path / name) for name in ("a.gguf", "c.gguf"))
    stored = [getattr(file.metadata, "stored") for file in (one, two)]  # noqa: B009 (a mapping to the type checker)
    assert {key: stored[1][key] for key in stored[0]} == stored[0]
    assert set(stored[1]) - set(stored[0]) == {"general.base_model.count", "general.base_model.0.name"}
    np.testing.assert_array_equal(two.tensors["blk.0.attn_norm.weight"], one.tensors["blk.0.attn_norm.weight"])
    assert two.tensors["blk.0.ffn_up.weight.lora_a"].dtype == np.float16
    assert formats.read(tmp_path / "c.gguf").provenance.base_model == "owner/base"


def test_the_name_of_the_base_and_tokens_of_an_activated_lora_go_with_it(tmp_path: Path) -> None:
    formats.write(Adapter({UP: low_rank()}), tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": "o/b", "alora_invocation_tokens": [5, 6]}
    path.write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="activated LoRA"):
        convert(tmp_path / "a", tmp_path / "b.gguf", to="gguf", base_config=LLAMA)
    convert(tmp_path / "a", tmp_path / "b.gguf", to="gguf", base_config=LLAMA, is_loss_allowed=True)
    adapter = formats.read(tmp_path / "b.gguf")
    assert adapter.provenance.base_model == "o/b"
    assert adapter.provenance.metadata["adapter.alora.invocation_tokens"] == "[5, 6]"


def test_a_file_without_heads_is_read_with_those_of_its_base(tmp_path: Path) -> None:
    sites: dict[str, Update] = {Q: low_rank(), K: low_rank()}
    written(tmp_path, sites)
    file = read_gguf(tmp_path / "a.gguf")
    fields = {key: value for key, value in file.metadata.items() if "head_count" not in key}
    write_gguf(tmp_path / "b.gguf", fields | {"adapter.lora.alpha": 2.0}, file.tensors)
    assert list(formats.read(tmp_path / "b.gguf")) == ["blk.0.attn_q", "blk.0.attn_k"]
    again = formats.read(tmp_path / "b.gguf", base_config=LLAMA)
    assert list(again) == [Q, K] and again.notes == ()
    assert [relative_error(sites[site], again[site]) for site in again] == [0.0, 0.0]
    with pytest.raises(AdapterError, match="another architecture than the file"):
        formats.read(tmp_path / "b.gguf", base_config=LLAMA | {"model_type": "qwen2"})
    report = convert(tmp_path / "b.gguf", tmp_path / "p", to="peft", base_config=LLAMA)
    assert report.lost == () and set(formats.read(tmp_path / "p")) == {Q, K}


def test_rows_in_llama_cpps_order_stay_so(tmp_path: Path) -> None:
    """q and k without heads keep llama.cpp's names and rows, also when they are edited."""
    native: dict[str, Update] = {"blk.0.attn_q": low_rank(), "blk.0.attn_k": low_rank()}
    written(tmp_path, native, {"model_type": "llama"})
    adapter = formats.read(tmp_path / "a.gguf")
    assert list(adapter) == list(native)
    formats.write(replace(adapter, original=None), tmp_path / "b.gguf", format="gguf")
    again = formats.read(tmp_path / "b.gguf")
    assert [relative_error(native[site], again[site]) for site in again] == [0.0, 0.0]


def test_a_tensor_that_gguf_has_no_place_for(tmp_path: Path) -> None:
    for name, tensor, match in (
        ("x" * 64, np.ones(1, np.float32), "too long"),
        ("x", np.ones((1,) * 5, np.float32), "no place"),
        ("x", np.ones(1, np.int8), "no place"),
        ("x", np.broadcast_to(np.float32(np.nan), (2, 3)), "only headers"),
    ):
        with pytest.raises(AdapterError, match=match):
            write_gguf(tmp_path / "a.gguf", {}, {name: tensor})


@pytest.mark.parametrize(
    ("config", "base_config"),
    [
        ({"alora_invocation_tokens": [-1]}, {}),
        ({"alora_invocation_tokens": [1 << 32]}, {}),
        ({"alora_invocation_tokens": ["a"]}, {}),
        ({"alora_invocation_tokens": "<start>"}, {}),
        ({}, {"num_attention_heads": 1 << 40}),
    ],
)
def test_numbers_that_gguf_has_no_place_for_are_refused(
    config: dict[str, Any], base_config: dict[str, Any], tmp_path: Path
) -> None:
    provenance = Provenance(config=config, base_config={"model_type": "llama", **base_config})
    with pytest.raises(AdapterError, match=r"tokens|head_count"):
        formats.write(Adapter({UP: low_rank()}, provenance), tmp_path / "a.gguf", format="gguf")
    assert not list(tmp_path.iterdir())
