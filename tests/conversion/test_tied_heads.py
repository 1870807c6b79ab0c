"""Embeddings that are the head too: one moves with the other, and a report says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from lorascope.adapter import Adapter, LowRank
from lorascope.conversion import bake
from lorascope.errors import AdapterError

EMBEDDING = np.arange(8, dtype=np.float32).reshape(4, 2)
MOVED = LowRank(np.ones((2, 1)), np.ones((1, 4)), layer="embedding", is_transposed=True)
HEAD = LowRank(np.ones((4, 1)), np.ones((1, 2)))


def base_in(folder: Path, config: dict[str, Any] | None, **tensors: np.ndarray) -> Path:
    folder.mkdir()
    names = {f"{name}.weight": tensor for name, tensor in ({"embed_tokens": EMBEDDING} | tensors).items()}
    safetensors.numpy.save_file(names, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def baked_in(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def test_the_head_of_a_tied_model_moves_as_when_peft_merges(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["embed_tokens"]))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape)
    wrapped.save_pretrained(tmp_path / "adapter")
    merged = wrapped.merge_and_unload()
    report = bake(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded.lm_head.weight, merged.lm_head.weight)
    (note,) = report.notes
    assert "model.embed_tokens.weight is the head too" in note and "the baked head moves with it" in note


@pytest.mark.parametrize(
    ("config", "head", "moves", "said"),
    [
        ({"tie_word_embeddings": True}, EMBEDDING, True, "is the head too"),
        ({"text_config": {"tie_word_embeddings": True}}, EMBEDDING, True, "is the head too"),
        ({"tie_word_embeddings": True}, -EMBEDDING, True, "is the head too"),
        (None, EMBEDDING, True, "is the head too"),
        ({"tie_word_embeddings": False}, EMBEDDING, False, None),
        (None, -EMBEDDING, False, None),
        (None, None, False, "no head is stored beside embed_tokens.weight"),
        ({"tie_word_embeddings": False}, None, False, None),
    ],
)
def test_a_stored_head_follows_the_embedding_that_it_is(
    config: dict[str, Any] | None, head: np.ndarray | None, moves: bool, said: str | None, tmp_path: Path
) -> None:
    base = base_in(tmp_path / "base", config, **({} if head is None else {"lm_head": head}))
    report = bake(base, [Adapter({"embed_tokens": MOVED})], tmp_path / "out")
    found = baked_in(tmp_path / "out")
    assert found["embed_tokens.weight"].tolist() == (EMBEDDING + 1).tolist()
    if head is not None:
        assert found["lm_head.weight"].tolist() == (EMBEDDING + 1 if moves else head).tolist()
    assert len(report.notes) == (said is not None) and (said or "") in " ".join(report.notes)
    assert report.tensors == 1 + moves


def test_a_head_that_is_the_embedding_is_not_changed_alone(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base", {"tie_word_embeddings": True}, lm_head=EMBEDDING)
    saved = {"base_model.model.lm_head.weight": EMBEDDING + 2, "base_model.model.embed_tokens.weight": EMBEDDING + 2}
    q = {"q": LowRank(np.ones((2, 1)), np.ones((1, 2)))}
    with pytest.raises(AdapterError, match="tied to the embedding") as caught:
        bake(base, [Adapter({"lm_head": HEAD})], tmp_path / "out")
    assert "tie_word_embeddings false" in (caught.value.hint or "")
    base = base_in(tmp_path / "more", {"tie_word_embeddings": True}, lm_head=EMBEDDING, q=np.zeros((2, 2), np.float32))
    with pytest.raises(AdapterError, match="tied to the embedding"):
        bake(base, [Adapter(q, leftovers=dict(list(saved.items())[:1]))], tmp_path / "out")
    bake(base, [Adapter(q, leftovers=saved)], tmp_path / "out")  # both alike: nothing is lost
    assert baked_in(tmp_path / "out")["lm_head.weight"].tolist() == (EMBEDDING + 2).tolist()
    alone = base_in(tmp_path / "alone", {"tie_word_embeddings": True})
    with pytest.raises(AdapterError, match="no such layer") as caught:
        bake(alone, [Adapter({"lm_head": HEAD})], tmp_path / "none")
    assert "tied" in (caught.value.hint or "")


def test_what_the_dtype_of_the_base_cannot_hold_is_no_saved_tensor(tmp_path: Path) -> None:
    q = {"q": LowRank(np.ones((2, 1)), np.ones((1, 2)))}
    for dtype, said in ((np.float16, "beyond the range"), (np.int8, "no place in the base")):
        base = base_in(tmp_path / dtype.__name__, None, q=np.zeros((2, 2), np.float32), score=np.zeros((2, 2), dtype))
        adapter = Adapter(q, leftovers={"score.weight": np.full((2, 2), 1e6, np.float32)})
        with pytest.raises(AdapterError, match=said):
            bake(base, [adapter], tmp_path / "out")
