"""Tensors that an adapter saved whole go into a model as they go into a checkpoint, and come out again."""

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
from lorascope.adapter.saved import saved_paths
from lorascope.conversion import bake
from lorascope.errors import AdapterError

EPS = float(np.finfo(np.float32).eps)


def classifier() -> Any:
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.BertConfig(**sizes, intermediate_size=16, num_labels=3)
    return transformers.BertForSequenceClassification(config).eval()


def trained(folder: Path, **options: Any) -> dict[str, np.ndarray]:
    """A PEFT adapter of random numbers in ``folder``, and the weights that PEFT merges it to."""
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], **options)
    wrapped = peft.get_peft_model(classifier(), config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder)
    merged = wrapped.merge_and_unload().state_dict()
    return {name: tensor.numpy() for name, tensor in merged.items()}


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
@pytest.mark.parametrize("modules", [None, ["classifier"], ["classifier", "pooler"]])
def test_what_peft_saves_whole_is_applied_and_baked_as_peft_merges_it(
    bias: Any, modules: list[str] | None, tmp_path: Path
) -> None:
    merged = trained(tmp_path / "adapter", bias=bias, modules_to_save=modules)
    model = classifier()
    model.save_pretrained(tmp_path / "base")
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    with formats.read(tmp_path / "adapter").apply_to(model):
        for name, tensor in model.state_dict().items():
            np.testing.assert_allclose(tensor.numpy(), merged[name], rtol=0, atol=64 * EPS, err_msg=name)
    for name, tensor in model.state_dict().items():
        assert (tensor.data_ptr(), True) == (before[name][0], torch.equal(tensor, before[name][1])), name
    bake(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    for name, tensor in safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors").items():
        np.testing.assert_allclose(tensor, merged[name], rtol=0, atol=64 * EPS, err_msg=name)


def test_an_adapter_goes_into_a_model_that_peft_has_wrapped(tmp_path: Path) -> None:
    merged = trained(tmp_path / "adapter", bias="lora_only")
    wrapped = peft.get_peft_model(classifier(), peft.LoraConfig(r=1, target_modules=["query"]))
    with formats.read(tmp_path / "adapter").apply_to(wrapped):
        query = wrapped.base_model.model.bert.encoder.layer[0].attention.self.query.base_layer
        name = "bert.encoder.layer.0.attention.self.query.bias"
        np.testing.assert_array_equal(query.bias.detach().numpy(), merged[name])


def test_what_was_there_before_training_is_no_saved_tensor_and_two_that_differ_are_refused() -> None:
    one, two = np.ones(2), np.zeros(2)
    keys = [f"base_model.model.head.{part}bias" for part in ("original_module.", "modules_to_save.", "")]
    assert saved_paths(dict(zip(keys, (two, one, one), strict=True))) == {"head.bias": keys[2]}
    assert saved_paths(dict(zip(keys[:2], (two, one), strict=True))) == {"head.bias": keys[1]}
    deep = "m.modules_to_save.mine.dense.bias"  # PEFT leaves the adapter's name in it
    assert saved_paths({deep: one, "m.dense.bias": one}) == {"m.dense.bias": "m.dense.bias"}
    assert saved_paths({"m.modules_to_save.default.dense.bias": one}).keys() == {"m.dense.bias"}
    assert saved_paths({"m.modules_to_save.dense.bias": one}).keys() == {"m.dense.bias"}
    with pytest.raises(AdapterError, match="differ and have one place"):
        saved_paths({keys[1]: two, keys[2]: one})
    with pytest.raises(AdapterError, match="differ and have one place"):
        saved_paths({"q.base_layer.bias": two, "q.bias": one})


class Tied(torch.nn.Module):
    def __init__(self, *, is_tied: bool) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(5, 2)
        self.q = torch.nn.Linear(2, 2, bias=False)
        self.lm_head = torch.nn.Linear(2, 5, bias=False)
        if is_tied:
            self.lm_head.weight = self.embed_tokens.weight


def with_saved(**saved: np.ndarray) -> Adapter:
    leftovers = {f"base_model.model.{name.replace('__', '.')}": tensor for name, tensor in saved.items()}
    return Adapter({"q": LowRank(np.ones((2, 1)), np.ones((1, 2)))}, leftovers=leftovers)


def test_a_saved_head_is_not_put_into_an_embedding() -> None:
    head = np.ones((5, 2), np.float32)
    model, tied = Tied(is_tied=False), Tied(is_tied=True)
    with with_saved(lm_head__weight=head).apply_to(model):
        assert model.lm_head.weight.tolist() == head.tolist() != model.embed_tokens.weight.tolist()
    before = tied.lm_head.weight.data.clone()
    for saved in ({"lm_head__weight": head}, {"lm_head__weight": head, "embed_tokens__weight": 2 * head}):
        with pytest.raises(AdapterError, match="shares between modules"):
            with_saved(**saved).apply_to(tied)
    for saved in ({"embed_tokens__weight": head}, {"lm_head__weight": head, "embed_tokens__weight": head}):
        with with_saved(**saved).apply_to(tied):
            assert tied.lm_head.weight.tolist() == tied.embed_tokens.weight.tolist() == head.tolist()
        assert torch.equal(tied.lm_head.weight.data, before)


@pytest.mark.parametrize(
    ("saved", "text"),
    [
        ({"score__weight": np.ones((2, 2), np.float32)}, "no place in the model"),
        ({"lm_head__weight": np.ones((6, 2), np.float32)}, "no place in the model"),
        ({"lm_head__weight": np.ones((5, 2), np.int32)}, "no place in the model"),
        ({"lm_head__weight": np.full((5, 2), np.nan, np.float32)}, "non-finite"),
        ({"lm_head__weight": np.full((5, 2), 1e300)}, "non-finite"),
    ],
)
def test_a_saved_tensor_that_does_not_fit_is_refused_and_the_model_left_as_it_was(
    saved: dict[str, np.ndarray], text: str
) -> None:
    model = Tied(is_tied=False)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    with pytest.raises(AdapterError, match=text):
        with_saved(**saved).apply_to(model)
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1]), name
    if "no place" in text:
        with with_saved(**saved).apply_to(model, is_loss_allowed=True):
            assert not torch.equal(model.q.weight, before["q.weight"][1])
            assert torch.equal(model.lm_head.weight, before["lm_head.weight"][1])
