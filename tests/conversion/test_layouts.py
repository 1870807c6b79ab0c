"""Square weights fit either way round: which way they are stored is told by evidence, or asked, never guessed."""

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

from lorascope import formats
from lorascope.adapter import Adapter, LowRank, Update
from lorascope.conversion import bake
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parts, built
from lorascope.scan import verify

EPS = float(np.finfo(np.float32).eps)
SIZE = 16
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def mixture(family: str) -> Any:
    """A model with experts whose down_proj is square: GPT-OSS stores it as [in, out], Qwen3 as [out, in]."""
    sizes = {"hidden_size": SIZE, "num_hidden_layers": 1, "vocab_size": 40, "head_dim": 8, "num_attention_heads": 2}
    extra: dict[str, Any] = {"num_local_experts": 3, "intermediate_size": SIZE}
    if family == "Qwen3Moe":
        extra = {"num_experts": 3, "moe_intermediate_size": SIZE}
    config = getattr(transformers, f"{family}Config")(**sizes, **extra, num_key_value_heads=1, num_experts_per_tok=2)
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config)


def trained(model: Any, folder: Path, **options: Any) -> dict[str, np.ndarray]:
    """A PEFT adapter with random factors in ``folder``, and the weights that PEFT merges it to."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, **options))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder)
    return {name: tensor.float().numpy() for name, tensor in wrapped.merge_and_unload().state_dict().items()}


def with_experts(family: str, folder: Path, parameters: list[str]) -> tuple[Path, dict[str, np.ndarray]]:
    mixture(family).save_pretrained(folder / "base", save_original_format=False)
    merged = trained(mixture(family), folder / "adapter", target_modules=[], target_parameters=parameters)
    return folder / "base", merged


def assert_merged(folder: Path, merged: dict[str, np.ndarray]) -> None:
    for file in folder.glob("*.safetensors"):
        for name, tensor in safetensors.numpy.load_file(file).items():
            limit = 16 * EPS * max(float(np.abs(tensor).max()), 1.0)
            np.testing.assert_allclose(tensor, merged[name], rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize("parameters", [EXPERTS, EXPERTS[1:]], ids=["both", "square"])
@pytest.mark.parametrize("family", ["GptOss", "Qwen3Moe"])
def test_square_experts_are_stored_as_the_model_type_says(family: str, parameters: list[str], tmp_path: Path) -> None:
    base, merged = with_experts(family, tmp_path, parameters)
    bake(base, [tmp_path / "adapter"], tmp_path / "out")
    assert_merged(tmp_path / "out", merged)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({"model_type": "a-vision-model", "text_config": config}))
    bake(base, [tmp_path / "adapter"], tmp_path / "nested")
    assert_merged(tmp_path / "nested", merged)


@pytest.mark.parametrize("family", ["GptOss", "Qwen3Moe"])
def test_square_experts_of_an_unknown_base_are_told_by_their_like_or_asked_for(family: str, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    base, merged = with_experts(family, tmp_path / "both", EXPERTS)
    (base / "config.json").unlink()
    bake(base, [tmp_path / "both" / "adapter"], tmp_path / "out")
    assert_merged(tmp_path / "out", merged)
    (tmp_path / "one").mkdir()
    base, merged = with_experts(family, tmp_path / "one", EXPERTS[1:])
    (base / "config.json").unlink()
    for is_loss_allowed in (False, True):
        with pytest.raises(AdapterError, match=r"fits either way round.*3 such sites") as caught:
            bake(base, [tmp_path / "one" / "adapter"], tmp_path / "no", is_loss_allowed=is_loss_allowed)
        assert caught.value.hint is not None and "--layout" in caught.value.hint
    assert not (tmp_path / "no").exists()
    findings = verify(tmp_path / "one" / "adapter", base=base)
    assert [finding.code for finding in findings].count("base-layout") == 3
    layout: Any = "in-out" if family == "GptOss" else "out-in"
    bake(base, [tmp_path / "one" / "adapter"], tmp_path / "asked", layout=layout)
    assert_merged(tmp_path / "asked", merged)


@pytest.mark.parametrize("parameters", [EXPERTS, EXPERTS[1:]], ids=["both", "square"])
@pytest.mark.parametrize("family", ["GptOss", "Qwen3Moe"])
def test_a_model_tells_the_layout_of_its_experts(family: str, parameters: list[str], tmp_path: Path) -> None:
    merged = trained(mixture(family), tmp_path, target_modules=[], target_parameters=parameters)
    model = mixture(family)
    with formats.read(tmp_path).apply_to(model):
        for name, tensor in model.state_dict().items():
            np.testing.assert_allclose(tensor.numpy(), merged[name], rtol=0, atol=64 * EPS * 16, err_msg=name)


def test_the_version_that_took_all_experts_as_in_out_is_followed_whatever_the_base_is(tmp_path: Path) -> None:
    base, _ = with_experts("Qwen3Moe", tmp_path, EXPERTS[1:])
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_version": "0.18.1"}))
    adapter = formats.read(tmp_path / "adapter")
    bake(base, [adapter], tmp_path / "out")
    name = "model.layers.0.mlp.experts.down_proj"
    change = weights(tmp_path / "out")[name] - weights(base)[name]
    for expert in range(3):
        B, A, scale = adapter[f"{name}[{expert}]"].factors(np.float64)
        np.testing.assert_allclose(change[expert], (scale * B @ A).T, atol=16 * EPS * 32)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def gpt2(folder: Path) -> Any:
    config = transformers.GPT2Config(n_embd=SIZE, n_layer=1, n_head=2, vocab_size=30, n_positions=8)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "parameters", [{"target_modules": ["attn.c_proj"]}, {"target_parameters": ["attn.c_proj.weight"]}]
)
@pytest.mark.parametrize("has_config", [True, False])
def test_a_square_conv1d_is_baked_as_peft_merges_it(
    has_config: bool, parameters: dict[str, Any], tmp_path: Path
) -> None:
    """As a layer it is turned; as a parameter PEFT takes it as it lies."""
    model = gpt2(tmp_path / "base")
    is_layer = "target_modules" in parameters
    options = {"target_modules": [], "fan_in_fan_out": is_layer} | parameters
    merged = trained(model, tmp_path / "adapter", **options)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": False}))
    if not has_config:  # the biases of the other layers tell
        (tmp_path / "base" / "config.json").unlink()
    bake(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    found = weights(tmp_path / "out")
    name = next(one for one in found if one.endswith("attn.c_proj.weight"))
    np.testing.assert_allclose(found[name], merged["transformer.h.0.attn.c_proj.weight"], atol=32 * EPS * 16)
    again = gpt2(tmp_path / "again")
    with formats.read(tmp_path / "adapter").apply_to(again):
        applied = again.state_dict()["transformer.h.0.attn.c_proj.weight"].numpy()
        np.testing.assert_allclose(applied, merged["transformer.h.0.attn.c_proj.weight"], atol=32 * EPS * 16)


def square(*, is_transposed: bool = False) -> LowRank:
    return LowRank(np.array([[1.0], [2.0]]), np.array([[1.0, 10.0]]), is_transposed=is_transposed)


STRAIGHT, OVER = [[1.0, 10.0], [2.0, 20.0]], [[1.0, 2.0], [10.0, 20.0]]


@pytest.mark.parametrize(
    ("config", "others", "is_transposed", "expected"),
    [
        (None, {}, False, None),
        (None, {}, True, OVER),
        ({"model_type": "gpt2"}, {}, False, OVER),
        ({"model_type": "vision-encoder-decoder", "decoder": {"model_type": "gpt2"}}, {}, False, OVER),
        ({"model_type": "clvp", "decoder_config": {"model_type": "clvp_decoder"}}, {}, False, OVER),
        ({"model_type": "someones-own"}, {}, False, None),
        (None, {"h.0.attn.c_attn.weight": (2, 6), "h.0.attn.c_attn.bias": (6,)}, False, OVER),
        ({"model_type": "own"}, {"h.0.attn.c_attn.weight": (6, 2), "h.0.attn.c_attn.bias": (6,)}, True, STRAIGHT),
        (None, {"h.0.attn.c_attn.weight": (6, 2), "h.1.attn.c_attn.weight": (2, 6)}, False, None),
    ],
)  # fmt: skip
def test_a_layer_called_like_a_conv1d_is_stored_as_the_evidence_says(
    config: dict[str, Any] | None,
    others: dict[str, tuple[int, ...]],
    is_transposed: bool,
    expected: Any,
    tmp_path: Path,
) -> None:
    tensors = {name: np.zeros(shape, np.float32) for name, shape in others.items()}
    tensors["h.0.attn.c_proj.weight"] = np.zeros((2, 2), np.float32)
    (tmp_path / "base").mkdir()
    safetensors.numpy.save_file(tensors, tmp_path / "base" / "model.safetensors")
    if config is not None:
        (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    adapter = Adapter({"h.0.attn.c_proj": square(is_transposed=is_transposed)})
    if expected is None:
        with pytest.raises(AdapterError, match="fits either way round"):
            bake(tmp_path / "base", [adapter], tmp_path / "out")
        bake(tmp_path / "base", [adapter], tmp_path / "out", layout="out-in")
        expected = STRAIGHT
    else:
        bake(tmp_path / "base", [adapter], tmp_path / "out")
    assert weights(tmp_path / "out")["h.0.attn.c_proj.weight"].tolist() == expected


def test_other_sites_of_the_adapter_tell_how_the_base_stores_a_square_one(tmp_path: Path) -> None:
    tensors = {"h.0.c_attn.weight": np.zeros((2, 6), np.float32), "h.0.c_proj.weight": np.zeros((2, 2), np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "base.safetensors")
    wide = LowRank(np.ones((6, 1)), np.ones((1, 2)))
    bake(
        tmp_path / "base.safetensors",
        [Adapter({"h.0.c_attn": wide, "h.0.c_proj": square()})],
        tmp_path / "out.safetensors",
    )
    assert safetensors.numpy.load_file(tmp_path / "out.safetensors")["h.0.c_proj.weight"].tolist() == OVER


def test_plain_layers_are_as_they_were_read(tmp_path: Path) -> None:
    """PEFT states fan_in_fan_out once; a base that is known not to have Conv1D there overrules it, as PEFT does."""
    (tmp_path / "base").mkdir()
    safetensors.numpy.save_file({"q.weight": np.zeros((2, 2), np.float32)}, tmp_path / "base" / "model.safetensors")
    cases = (("a", None, False, STRAIGHT), ("b", None, True, OVER), ("c", {"model_type": "llama"}, True, STRAIGHT))
    for out, config, is_transposed, expected in cases:
        if config is not None:
            (tmp_path / "base" / "config.json").write_text(json.dumps(config))
        bake(tmp_path / "base", [Adapter({"q": square(is_transposed=is_transposed)})], tmp_path / out)
        assert weights(tmp_path / out)["q.weight"].tolist() == expected


@pytest.mark.parametrize(
    ("model_type", "layout", "expected"),
    [
        ("gpt_oss", "stated", OVER),
        ("llama4_text", "stated", OVER),  # what another format says of (out, in) is turned as the base lies
        ("llama4_text", "open", STRAIGHT),  # PEFT asks for a flag, which that model has not
        ("qwen3_moe", "open", STRAIGHT),
        ("qwen3_vl_moe", "open", None),  # checkpoints of it exist in both layouts
    ],
)
def test_experts_of_model_types(model_type: str, layout: Any, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    tensors = {"experts.down_proj": np.zeros((2, 2, 2), np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"text_config": {"model_type": model_type}}))
    update = LowRank(square().B, square().A, layout=layout)
    adapter = Adapter({"experts.down_proj[1]": update})
    if expected is None:
        with pytest.raises(AdapterError, match="fits either way round"):
            bake(tmp_path / "base", [adapter], tmp_path / "out")
        return
    bake(tmp_path / "base", [adapter], tmp_path / "out")
    assert weights(tmp_path / "out")["experts.down_proj"][1].tolist() == expected


def stored(folder: Path, shapes: dict[str, tuple[int, ...]], model_type: str | None = None) -> Path:
    """A base of zeros."""
    folder.mkdir()
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.mark.parametrize(("layout", "expected"), [("out-in", STRAIGHT), ("in-out", OVER)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_an_answer_holds_for_layers_of_any_name(
    layout: Any, expected: Any, is_transposed: bool, tmp_path: Path
) -> None:
    base = stored(tmp_path / "base", {"h.0.attn.proj.weight": (2, 2)})
    bake(base, [Adapter({"h.0.attn.proj": square(is_transposed=is_transposed)})], tmp_path / "out", layout=layout)
    assert weights(tmp_path / "out")["h.0.attn.proj.weight"].tolist() == expected


def test_an_answer_turns_no_layer_against_its_shape(tmp_path: Path) -> None:
    base = stored(tmp_path / "base", {"wide.weight": (3, 2), "over.weight": (2, 3), "proj.weight": (2, 2)})
    wide = LowRank(np.ones((3, 1)), np.ones((1, 2)))
    bake(base, [Adapter({"wide": wide, "over": wide, "proj": square()})], tmp_path / "out", layout="in-out")
    assert weights(tmp_path / "out")["proj.weight"].tolist() == OVER
    with pytest.raises(AdapterError, match="does not fit"):
        bake(base, [Adapter({"over": wide})], tmp_path / "no", layout="out-in")


@pytest.mark.parametrize(
    ("site", "name", "model_type", "layout"),
    [
        ("h.0.c_proj", "h.0.c_proj.weight", "gpt2", "out-in"),
        ("q", "q.weight", "llama", "in-out"),
        ("experts.down_proj[0]", "experts.down_proj", "gpt_oss", "out-in"),
        ("experts.down_proj[0]", "experts.down_proj", "qwen3_moe", "in-out"),
    ],
)
def test_an_answer_that_contradicts_the_base_is_refused(
    site: str, name: str, model_type: str, layout: Any, tmp_path: Path
) -> None:
    base = stored(tmp_path / "base", {name: (2, 2, 2) if "[" in site else (2, 2)}, model_type)
    for kind in ("stated", "open") if "[" in site else ("stated",):
        adapter = Adapter({site: LowRank(square().B, square().A, layout=kind)})  # type: ignore[arg-type]  # a str from a table
        with pytest.raises(AdapterError, match="contradicts what is known of the base") as caught:
            bake(base, [adapter], tmp_path / "no", layout=layout)
        assert caught.value.code == "layout-contradicted" and caught.value.key == site
        right: Any = "in-out" if layout == "out-in" else "out-in"
        bake(base, [adapter], tmp_path / kind, layout=right)
        bake(base, [adapter], tmp_path / f"{kind}-unasked")
        assert weights(tmp_path / kind)[name].tolist() == weights(tmp_path / f"{kind}-unasked")[name].tolist()


def test_an_answer_that_contradicts_the_other_sites_is_refused(tmp_path: Path) -> None:
    base = stored(tmp_path / "base", {"h.0.c_attn.weight": (2, 6), "h.0.c_proj.weight": (2, 2)})
    adapter = Adapter({"h.0.c_attn": LowRank(np.ones((6, 1)), np.ones((1, 2))), "h.0.c_proj": square()})
    with pytest.raises(AdapterError, match="contradicts what is known of the base"):
        bake(base, [adapter], tmp_path / "no", layout="out-in")


def test_an_answer_that_one_adapter_needs_leaves_what_is_known_of_others(tmp_path: Path) -> None:
    shapes = {"q.weight": (2, 2), "c_proj.weight": (2, 2)}
    base = stored(tmp_path / "base", shapes, "someones-own")  # tells of q and not of c_proj
    bake(base, [Adapter({"q": square()}), Adapter({"c_proj": square()})], tmp_path / "out", layout="in-out")
    found = weights(tmp_path / "out")
    assert found["q.weight"].tolist() == STRAIGHT and found["c_proj.weight"].tolist() == OVER


def test_one_answer_is_not_taken_for_layers_and_others_against_their_names(tmp_path: Path) -> None:
    """Who answers for the experts of GPT-OSS does not mean its layers of attention."""
    base = stored(tmp_path / "base", {"q.weight": (2, 2), "experts.down_proj": (2, 2, 2)})
    expert = LowRank(square().B, square().A, layout="open")
    adapter = Adapter({"q": square(), "experts.down_proj[0]": expert})
    with pytest.raises(AdapterError, match="layers of different kinds"):
        bake(base, [adapter], tmp_path / "no", layout="in-out")
    bake(base, [adapter], tmp_path / "straight", layout="out-in")
    bake(base, [Adapter({"experts.down_proj[0]": expert})], tmp_path / "out", layout="in-out")
    assert weights(tmp_path / "straight")["experts.down_proj"][0].tolist() == STRAIGHT
    assert weights(tmp_path / "out")["experts.down_proj"][0].tolist() == OVER


def difference(out: int, in_: int) -> Update:
    return built("full", Parts("s", {"diff": np.ones((out, in_))}))


def test_a_full_difference_is_not_added_to_a_weight_that_is_said_to_be_stored_the_other_way(tmp_path: Path) -> None:
    base = stored(tmp_path / "base", {"proj.weight": (2, 2), "wide.weight": (3, 2)})
    with pytest.raises(AdapterError, match=r"stores this weight as \[in, out\]"):
        bake(base, [Adapter({"proj": difference(2, 2)})], tmp_path / "no", layout="in-out")
    bake(base, [Adapter({"wide": difference(3, 2)})], tmp_path / "out", layout="in-out")
