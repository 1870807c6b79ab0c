"""PEFT's LORA in all its variants against PEFT: its files are read as it merges them, and it loads what is written."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.errors import AdapterError
from lorascope.formats.parametrisations.dora import decorated
from peft_layers import Layers

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    gpt2 = pytest.importorskip("transformers.pytorch_utils")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_double")]

DOUBLE = 1e-11
SINGLE = 1e-5
"""Relative to the largest entry: what PEFT works out in float64, and where it goes through float32."""


def linears() -> Layers:
    return Layers(wide=torch.nn.Linear(11, 7), tall=torch.nn.Linear(6, 13), square=torch.nn.Linear(9, 9))


def convolutions() -> Layers:
    return Layers(
        one=torch.nn.Conv1d(4, 6, 3),
        two=torch.nn.Conv2d(4, 6, (3, 2)),
        point=torch.nn.Conv2d(5, 7, 1),
        three=torch.nn.Conv3d(3, 5, 2),
    )


def gpt2_layers() -> Layers:
    layers = Layers(wide=gpt2.Conv1D(7, 11), square=gpt2.Conv1D(9, 9))
    for layer in layers.children():
        layer.weight.data = torch.randn(layer.weight.shape)
    return layers


def embeddings() -> Layers:
    return Layers(words=torch.nn.Embedding(12, 5), linear=torch.nn.Linear(5, 8))


def adapted(model: Any, **fields: Any) -> Any:
    """The model with PEFT's adapter, every trained number random."""
    fields.setdefault("target_modules", [name for name, _ in model.named_children()])
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **fields})
    wrapped = peft.get_peft_model(model, config).double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return wrapped


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make()


def error(found: Any, expected: Any) -> float:
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 1e-4
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def weights(model: Any) -> dict[str, Any]:
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def checked(make: Callable[[], Any], folder: Path, tolerance: float = DOUBLE, **fields: Any) -> Adapter:
    """Compare the change of every weight and bias with PEFT's merged model."""
    model = seeded(make)
    before = weights(model)
    wrapped = adapted(model, **fields)
    wrapped.save_pretrained(folder)
    after = weights(copy.deepcopy(wrapped).merge_and_unload())
    adapter = formats.read(folder)
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    worst, seen = 0.0, set[str]()
    for site, update in adapter.items():
        base = before[f"{site}.weight"]
        moved = after[f"{site}.weight"] - base
        worst = max(worst, error(update.delta_weight(np.float64, base=base), moved))
        assert update.base_shape == base.shape
        bias = before.get(f"{site}.bias")
        delta_bias = update.delta_bias(np.float64, base=bias)
        seen |= {f"{site}.weight"} | ({f"{site}.bias"} if delta_bias is not None else set())
        if delta_bias is not None:
            worst = max(worst, error(delta_bias, after[f"{site}.bias"] - bias))
    assert changed == seen
    assert worst < tolerance
    return adapter


def checked_as_loaded(adapter: Adapter, make: Callable[[], Any], folder: Path, tolerance: float = DOUBLE) -> Any:
    """Write the adapter as an edited one, let PEFT load it, and compare what it merges."""
    formats.write(adapter.with_sites(dict(adapter)), folder, format="peft")
    model = seeded(make)
    before = weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=UserWarning)  # missing or unexpected keys
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        loaded = peft.PeftModel.from_pretrained(model, folder).double()
    after = weights(copy.deepcopy(loaded).merge_and_unload())
    for site, update in adapter.items():
        base = before[f"{site}.weight"]
        assert error(update.delta_weight(np.float64, base=base), after[f"{site}.weight"] - base) < tolerance
        delta_bias = update.delta_bias(np.float64, base=before.get(f"{site}.bias"))
        if delta_bias is not None:
            bias = before[f"{site}.bias"]
            np.testing.assert_allclose(delta_bias, after[f"{site}.bias"] - bias, rtol=0, atol=tolerance * 10)
    return loaded


@pytest.mark.parametrize("make", [linears, convolutions])
def test_biases_of_the_layers(make: Callable[[], Any], tmp_path: Path) -> None:
    adapter = checked(make, tmp_path / "a", lora_bias=True, rank_pattern={"wide": 2, "two": 3})
    assert all(update.kind == "lora" and update.bias is not None for update in adapter.values())
    assert not adapter.leftovers and not adapter.notes
    checked_as_loaded(adapter, make, tmp_path / "b")


def test_a_bias_at_one_site_is_written_with_zeros_at_the_others(tmp_path: Path) -> None:
    plain = checked(linears, tmp_path / "a")
    wide = plain["wide"]
    assert isinstance(wide, LowRank)
    biased = LowRank(wide.B, wide.A, wide.scale, bias=np.arange(1.0, 8.0))
    loaded = checked_as_loaded(plain.with_sites({**plain, "wide": biased}), linears, tmp_path / "b")
    assert float(loaded.base_model.model.tall.lora_B["default"].bias.abs().max()) == 0.0


@pytest.mark.parametrize("make", [linears, convolutions, gpt2_layers, embeddings])
@pytest.mark.parametrize("is_rslora", [False, True])
def test_dora(make: Callable[[], Any], is_rslora: bool, tmp_path: Path) -> None:
    is_transposed = {"fan_in_fan_out": True} if make is gpt2_layers else {}
    adapter = checked(make, tmp_path / "a", use_dora=True, use_rslora=is_rslora, **is_transposed)
    assert adapter.provenance.kind == "dora" and {update.kind for update in adapter.values()} == {"dora"}
    with pytest.raises(AdapterError, match="relative to the base weight"):
        next(iter(adapter.values())).norm()
    checked_as_loaded(adapter, make, tmp_path / "b")


def test_dora_in_half_precision(tmp_path: Path) -> None:
    adapter = checked(linears, tmp_path / "a", use_dora=True)
    formats.write(adapter, tmp_path / "half", dtype="float16", format="peft")
    half = formats.read(tmp_path / "half")
    base = np.random.default_rng(0).standard_normal((7, 11))
    one, two = (one["wide"].delta_weight(np.float64, base=base) for one in (adapter, half))
    assert 0 < error(two, one) < 1e-2


def test_sites_with_and_without_magnitudes_have_no_place_together(tmp_path: Path) -> None:
    adapter = checked(linears, tmp_path / "a")
    wide = adapter["wide"]
    mixed = adapter.with_sites({**adapter, "wide": decorated(wide, np.ones(7), "m", "wide")})
    with pytest.raises(AdapterError, match="here they differ"):
        formats.write(mixed, tmp_path / "b", format="peft")


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("kernel", [3, 1])
def test_a_convolution_in_groups_acts_as_the_full_one(groups: int, kernel: int, tmp_path: Path) -> None:
    def make() -> Any:
        return Layers(two=torch.nn.Conv2d(8, 12, kernel, padding=1, stride=2, groups=groups))

    model = seeded(make)
    wrapped = adapted(model, lora_bias=True)
    wrapped.save_pretrained(tmp_path / "a")
    adapter = formats.read(tmp_path / "a")
    update = adapter["two"]
    assert update.base_shape == (12, 8, kernel, kernel)  # the base has 8 / groups channels
    x = torch.randn(2, 8, 7, 6)

    def change(wrapped: Any) -> Any:
        layer = wrapped.base_model.model.two
        with torch.no_grad():
            return (layer(x) - layer.base_layer(x)).numpy()

    delta, bias = torch.as_tensor(update.delta_weight(np.float64)), update.delta_bias(np.float64)
    ours = torch.nn.functional.conv2d(x, delta, torch.as_tensor(bias), stride=2, padding=1)
    assert error(ours.numpy(), change(wrapped)) < DOUBLE
    formats.write(adapter.with_sites(dict(adapter)), tmp_path / "b", format="peft")
    loaded = peft.PeftModel.from_pretrained(seeded(make), tmp_path / "b").double().eval()
    assert error(change(loaded), change(wrapped)) < DOUBLE


class Experts(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Fused expert parameters as transformers has them: [E, out, in], or [E, in, out] where ``is_transposed``."""

    def __init__(self, names: tuple[str, ...], *, is_transposed: bool, count: int = 3) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        self.names = names
        for number, name in enumerate(names):
            shape = (count, 10 + number, 7 - number)
            self.register_parameter(name, torch.nn.Parameter(torch.randn(shape)))

    def forward(self, x: Any) -> Any:
        return x


class Mixture(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, names: tuple[str, ...], *, is_transposed: bool) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            Layers(q=torch.nn.Linear(6, 5), experts=Experts(names, is_transposed=is_transposed)) for _ in range(2)
        )

    def forward(self, x: Any) -> Any:
        return x


def mixture(names: tuple[str, ...], *, is_transposed: bool) -> Callable[[], Any]:
    return lambda: Mixture(names, is_transposed=is_transposed)


def expert_changes(wrapped: Any, before: dict[str, Any]) -> dict[str, Any]:
    after = weights(copy.deepcopy(wrapped).merge_and_unload())
    return {name: after[name] - before[name] for name in before if not np.array_equal(after[name], before[name])}


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("names", [("gate_up_proj",), ("gate_up_proj", "down_proj")])
def test_experts(names: tuple[str, ...], is_transposed: bool, tmp_path: Path) -> None:
    make = mixture(names, is_transposed=is_transposed)
    model = seeded(make)
    before = weights(model)
    wrapped = adapted(
        model,
        target_modules=["q"],
        target_parameters=[f"experts.{name}" for name in reversed(names)],
        rank_pattern={r"0\.experts\.gate_up_proj": 3},
        alpha_pattern={"experts.gate_up_proj": 5},
    )
    wrapped.save_pretrained(tmp_path / "a")
    adapter = formats.read(tmp_path / "a")
    changes = expert_changes(wrapped, before)
    assert len(adapter) == 2 + 2 * 3 * len(names) and len(changes) == 2 + 2 * len(names)
    for site, update in adapter.items():
        path, _, expert = site.partition("[")
        change = changes[f"{path}.weight"] if not expert else changes[path][int(expert.rstrip("]"))]
        delta = update.delta_weight(np.float64)
        # the file does not say how the base is stored: the note says what was taken
        found = delta.T if expert and is_transposed else delta
        assert error(found, change) < DOUBLE
    assert adapter["layers.0.experts.gate_up_proj[2]"].rank == 3
    formats.write(adapter.with_sites(dict(adapter)), tmp_path / "b", format="peft")
    loaded = peft.PeftModel.from_pretrained(seeded(make), tmp_path / "b").double()
    again = expert_changes(loaded, before)
    assert again.keys() == changes.keys()
    for name, change in changes.items():
        assert error(again[name], change) < DOUBLE


def test_the_parameter_registered_first_is_the_deepest_whatever_the_configuration_says(tmp_path: Path) -> None:
    model = seeded(mixture(("w2", "w1"), is_transposed=False))
    before = weights(model)
    wrapped = adapted(model, target_modules=[], target_parameters=["experts.w1", "experts.w2"])
    wrapped.save_pretrained(tmp_path)
    adapter = formats.read(tmp_path)
    changes = expert_changes(wrapped, before)
    for number, name in enumerate(("w2", "w1")):  # as the module registers them
        change = changes[f"layers.1.experts.{name}"][1]
        assert error(adapter[f"layers.1.experts.#{number}[1]"].delta_weight(np.float64), change) < DOUBLE
    assert "expert-names" in {note.code for note in adapter.notes}


def test_the_weight_of_a_linear_layer_as_a_parameter(tmp_path: Path) -> None:
    adapter = checked(linears, tmp_path / "a", target_modules=["tall"], target_parameters=["wide.weight"])
    assert set(adapter) == {"tall", "wide"}


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_block_diagonal(blocks: int, tmp_path: Path) -> None:
    def make() -> Any:
        return Layers(q=torch.nn.Linear(12, 18), o=torch.nn.Linear(18, 12), plain=torch.nn.Linear(6, 6))

    config = peft.tuners.lora.config.BdLoraConfig(
        target_modules_bd_a=["o"], target_modules_bd_b=["q"], nblocks=blocks, match_strict=False
    )
    adapter = checked(make, tmp_path / "a", r=6, use_bdlora=config, lora_bias=False)
    assert {site: update.kind for site, update in adapter.items()} == {"q": "bdlora", "o": "bdlora", "plain": "lora"}
    checked_as_loaded(adapter, make, tmp_path / "b")


def test_kasa(tmp_path: Path) -> None:
    config = peft.tuners.lora.config.KasaConfig()
    make = linears
    model = seeded(make)
    before = weights(model)
    wrapped = adapted(model, r=3, kasa_config=config)
    wrapped.save_pretrained(tmp_path)
    after = weights(copy.deepcopy(wrapped).merge_and_unload())
    adapter = formats.read(tmp_path)
    assert {update.kind for update in adapter.values()} == {"kasa"}
    for site, update in adapter.items():
        base = before[f"{site}.weight"]
        change = update.delta_weight(np.float64, base=base)
        assert error(change, after[f"{site}.weight"] - base) < SINGLE
        assert np.linalg.matrix_rank(change, tol=1e-9) <= update.rank if -1 not in update.shape else True


@pytest.mark.parametrize("family", ["Qwen3Moe", "GptOss"])
def test_experts_of_a_real_architecture_compute_what_peft_computes(family: str, tmp_path: Path) -> None:
    """Qwen3 stores its experts as [out, in], GPT-OSS as [in, out]; the file does not tell."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts_per_tok": 2}
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    extra = {"num_local_experts": 4} if family == "GptOss" else {"num_experts": 4, "moe_intermediate_size": 12}
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, **extra, **eager)

    def make() -> Any:
        return getattr(transformers, f"{family}ForCausalLM")(config).double().eval()

    parameters = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    wrapped = adapted(seeded(make), r=2, target_modules=["q_proj"], target_parameters=parameters)
    wrapped.save_pretrained(tmp_path)
    if family == "GptOss":
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "openai/gpt-oss-20b"}))
    adapter = formats.read(tmp_path)
    assert len(adapter) == 2 * (1 + 2 * 4)
    tokens = torch.arange(12)[None]
    model = seeded(make)
    with torch.no_grad():
        plain, theirs = model(tokens).logits.numpy(), wrapped(tokens).logits.numpy()
        with adapter.apply_to(model):
            ours = model(tokens).logits.numpy()
    assert np.abs(theirs - plain).max() > 1e-3
    assert error(ours, theirs) < SINGLE  # a router and a norm inside the models go through float32
