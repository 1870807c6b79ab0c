"""PEFT's types near LoRA against PEFT: files that it saves are read as it merges them, and it loads what is written."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter, Expanded
from lorascope.errors import AdapterError
from peft_layers import Layers

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    gpt2 = pytest.importorskip("transformers.pytorch_utils")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_double")]

DOUBLE = 1e-11
"""Relative to the largest entry of ΔW: PEFT works all of these out in float64."""


Make = Callable[[], Layers]


def linears() -> Layers:
    return Layers(wide=torch.nn.Linear(12, 8), tall=torch.nn.Linear(8, 20), square=torch.nn.Linear(16, 16))


def convolutions() -> Layers:
    return Layers(two=torch.nn.Conv2d(8, 12, (3, 2)), point=torch.nn.Conv2d(6, 8, 1))


def conv1d() -> Layers:
    return Layers(one=torch.nn.Conv1d(8, 12, 3))


def gpt2_layers() -> Layers:
    layers = Layers(wide=gpt2.Conv1D(8, 12), square=gpt2.Conv1D(16, 16))
    for layer in layers.children():
        layer.weight.data = torch.randn(layer.weight.shape)
        layer.bias.data = torch.randn(layer.bias.shape)
    return layers


def seeded(make: Make) -> Layers:
    torch.manual_seed(0)
    return make()


def randomised(model: Layers, config: Any) -> Any:
    """The model with PEFT's adapter, every trained number random."""
    config.target_modules = config.target_modules or [name for name, _ in model.named_children()]
    wrapped = peft.get_peft_model(model, config).double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return wrapped


def weights(model: Any) -> dict[str, Any]:
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def error(found: Any, expected: Any) -> float:
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 1e-4
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def compared(adapter: Adapter, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Every tensor that PEFT changes is changed alike, and no other."""
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    seen: set[str] = set()
    for site, update in adapter.items():
        base, bias = before[f"{site}.weight"], before.get(f"{site}.bias")
        change = after[f"{site}.weight"] - base
        assert error(update.delta_weight(np.float64, base=base), change) < DOUBLE
        delta_bias = update.delta_bias(np.float64, base=bias)
        seen.add(f"{site}.weight")
        if delta_bias is not None:
            seen.add(f"{site}.bias")
            assert error(delta_bias, after[f"{site}.bias"] - bias) < DOUBLE
        resolved: Any = update.resolved(base.shape)  # type: ignore[attr-defined]
        assert resolved.base_shape == base.shape
        if isinstance(resolved, Expanded):
            assert resolved.norm() == pytest.approx(float(np.linalg.norm(change)), rel=1e-10)
            matrix = change.T if resolved.is_transposed else change.reshape(change.shape[0], -1)
            assert np.linalg.matrix_rank(matrix, tol=1e-9 * np.abs(change).max()) <= resolved.rank
            x = np.random.default_rng(0).standard_normal((3, matrix.shape[1]))
            assert error(resolved.apply(x), x @ matrix.T) < DOUBLE
    assert seen == changed


def checked(make: Make, config: Any, folder: Path) -> Adapter:
    model = seeded(make)
    before = weights(model)
    wrapped = randomised(model, config)
    wrapped.save_pretrained(folder)
    adapter = formats.read(folder)
    compared(adapter, before, weights(copy.deepcopy(wrapped).merge_and_unload()))
    return adapter


def checked_as_loaded(adapter: Adapter, make: Make, folder: Path, peft_type: str) -> None:
    """Write the adapter as an edited one, let PEFT load it, and compare what it merges."""
    formats.write(adapter.with_sites(dict(adapter)), folder, format="peft")
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == peft_type
    model = seeded(make)
    before = weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=UserWarning)  # missing or unexpected keys
        loaded = peft.PeftModel.from_pretrained(model, folder).double()
    compared(adapter, before, weights(copy.deepcopy(loaded).merge_and_unload()))


# AdaLoRA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (linears, {"init_r": 4, "lora_alpha": 6}),
        (linears, {"init_r": 3, "lora_alpha": 0}),
        (convolutions, {"init_r": 5, "lora_alpha": 2, "r": 1}),
        (gpt2_layers, {"init_r": 4, "fan_in_fan_out": True}),
    ],
)
def test_adalora(make: Make, fields: dict[str, Any], tmp_path: Path) -> None:
    adapter = checked(make, peft.AdaLoraConfig(total_step=10, **fields), tmp_path / "a")
    assert {update.kind for update in adapter.values()} == {"adalora"}
    checked_as_loaded(adapter, make, tmp_path / "b", "ADALORA")
    checked_as_loaded(Adapter(dict(adapter)), make, tmp_path / "c", "ADALORA")
    moved = Adapter({site: update.rescaled(0.3) for site, update in adapter.items()})
    checked_as_loaded(moved, make, tmp_path / "d", "ADALORA")
    assert {update.scale for update in formats.read(tmp_path / "d").values()} == {0.3}


def test_adalora_of_scales_that_differ_becomes_lora(tmp_path: Path) -> None:
    adapter = checked(linears, peft.AdaLoraConfig(total_step=10, init_r=3), tmp_path / "a")
    mixed = adapter.with_sites({**adapter, "wide": adapter["wide"].rescaled(0.5)})
    checked_as_loaded(mixed, linears, tmp_path / "b", "LORA")


def test_adalora_after_pruning(tmp_path: Path) -> None:
    """Rows are cut as the configuration's masks say, at one site all of them; the divisor stays init_r."""
    model = seeded(linears)
    before = weights(model)
    wrapped = randomised(model, peft.AdaLoraConfig(init_r=4, lora_alpha=6, total_step=10))
    masks = {"wide": [True, False, True, False], "tall": [False] * 4, "square": [True] * 4}
    pattern = {f"{site}.lora_E": mask for site, mask in masks.items()}
    for site, mask in masks.items():
        getattr(wrapped.base_model.model, site).lora_E["default"].data *= torch.tensor(mask)[:, None]
    after = weights(copy.deepcopy(wrapped).merge_and_unload())
    wrapped.peft_config["default"].rank_pattern = {f"{name}.default": mask for name, mask in pattern.items()}
    wrapped.save_pretrained(tmp_path)
    adapter = formats.read(tmp_path)
    assert {site: update.dim for site, update in adapter.items()} == {"wide": 2, "tall": 0, "square": 4}
    for site, update in adapter.items():
        change = after[f"{site}.weight"] - before[f"{site}.weight"]
        delta = update.delta_weight(np.float64)
        assert delta.shape == change.shape and np.abs(delta - change).max() < DOUBLE
        assert update.norm() == pytest.approx(float(np.linalg.norm(change)), abs=1e-10)
        spectrum = update.spectrum()
        assert spectrum is not None and len(spectrum) == update.dim
    formats.write(adapter.with_sites(dict(adapter)), tmp_path / "again", format="peft")
    loaded = peft.PeftModel.from_pretrained(seeded(linears), tmp_path / "again").double()
    merged = weights(loaded.merge_and_unload())
    for name, tensor in after.items():
        assert np.abs(merged[name] - tensor).max() < DOUBLE


# IA3, norms ----------------------------------------------------------------------------------------------------------


def grouped() -> Layers:
    return Layers(two=torch.nn.Conv2d(8, 12, 3, groups=4), cube=torch.nn.Conv3d(4, 6, 2), plain=torch.nn.Linear(6, 6))


@pytest.mark.parametrize("make", [linears, convolutions, grouped, gpt2_layers])
@pytest.mark.parametrize("which", ["none", "all", "some", "pattern"])
def test_ia3(make: Make, which: str, tmp_path: Path) -> None:
    names = [name for name, _ in make().named_children()]
    feedforward: Any = {"none": [], "all": names, "some": names[:1], "pattern": f"({'|'.join(names[:2])})"}[which]
    fields = {"fan_in_fan_out": True} if make is gpt2_layers else {}
    config = peft.IA3Config(
        target_modules=names, feedforward_modules=names if which == "pattern" else feedforward, **fields
    )
    if which == "pattern":  # both must be strings
        config = peft.IA3Config(target_modules=f"({'|'.join(names)})", feedforward_modules=feedforward, **fields)
    adapter = checked(make, config, tmp_path / "a")
    checked_as_loaded(adapter, make, tmp_path / "b", "IA3")
    on_input = {site for site, update in adapter.items() if update.axis == "in"}  # type: ignore[attr-defined]
    assert on_input == {"none": set(), "all": set(names), "some": set(names[:1]), "pattern": set(names[:2])}[which]


def test_gates_on_inputs_and_outputs_whose_names_end_alike(tmp_path: Path) -> None:
    def make() -> Layers:
        return Layers(fc=torch.nn.Linear(6, 6), x_fc=torch.nn.Linear(6, 4))

    config = peft.IA3Config(target_modules="fc|x_fc", feedforward_modules="fc")
    adapter = checked(make, config, tmp_path / "a")
    checked_as_loaded(adapter, make, tmp_path / "b", "IA3")
    assert formats.read(tmp_path / "b")["fc"].axis == "in"  # type: ignore[attr-defined]  # of IA3 alone


def test_a_gate_of_a_convolution_needs_the_configuration(tmp_path: Path) -> None:
    checked(convolutions, peft.IA3Config(feedforward_modules=["two"]), tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    for value, said in ((None, "does not say which"), (7, "list of names"), ("(.*)*x", "too complex")):
        path.write_text(json.dumps(config | {"feedforward_modules": value}))
        with pytest.raises(AdapterError, match=said):
            formats.read(tmp_path)


def test_tuned_norms(tmp_path: Path) -> None:
    def make() -> Layers:
        return Layers(
            norm=torch.nn.LayerNorm(6),
            bare=torch.nn.RMSNorm(5),
            group=torch.nn.GroupNorm(2, 8),
            fc=torch.nn.Linear(3, 4),
        )

    adapter = checked(make, peft.LNTuningConfig(), tmp_path)
    assert {update.kind for update in adapter.values()} == {"norm"} and not adapter.leftovers
    assert adapter["norm"].layer == "norm" and adapter["fc"].layer == "linear"
    base = np.ones(6)
    with pytest.raises(AdapterError, match="does not fit the base"):
        adapter["norm"].delta_bias(base=np.ones(5))
    assert adapter["norm"].delta_weight(np.float64, base=base).shape == (6,)


# VeRA, DeLoRA, GraLoRA -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [linears, gpt2_layers])
@pytest.mark.parametrize("rank", [3, 20])
def test_vera(make: Make, rank: int, tmp_path: Path) -> None:
    fields = {"fan_in_fan_out": True} if make is gpt2_layers else {}
    adapter = checked(make, peft.VeraConfig(r=rank, projection_prng_key=7, **fields), tmp_path / "a")
    checked_as_loaded(adapter, make, tmp_path / "b", "VERA")
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["projection_prng_key"] == 7
    update: Any = adapter["wide"]
    assert update.needs == "base shape"
    with pytest.raises(AdapterError, match="up to 16 inputs"):
        update.resolved((17, 8) if update.is_transposed else (8, 17))


def test_vera_of_sites_with_other_projections_becomes_lora(tmp_path: Path) -> None:
    adapter = checked(linears, peft.VeraConfig(r=3), tmp_path / "a")
    other = checked(linears, peft.VeraConfig(r=3, projection_prng_key=1), tmp_path / "b")
    mixed: dict[str, Any] = {**adapter, "tall": other["tall"]}
    shapes = {name: tuple(layer.weight.shape) for name, layer in linears().named_children()}
    resolved = {name: update.resolved(shapes[name]) for name, update in mixed.items()}
    checked_as_loaded(adapter.with_sites(resolved), linears, tmp_path / "c", "LORA")


def test_vera_of_fewer_sites_is_written_with_smaller_projections(tmp_path: Path) -> None:
    """PEFT makes them as large as the largest site that is adapted."""
    adapter: Any = checked(linears, peft.VeraConfig(r=3), tmp_path / "a")
    fewer = adapter.with_sites({"wide": adapter["wide"].resolved((8, 12))})
    checked_as_loaded(fewer, linears, tmp_path / "b", "VERA")


def test_vera_without_its_projections_says_why(tmp_path: Path) -> None:
    randomised(seeded(linears), peft.VeraConfig(r=3, save_projection=False)).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="projection_prng_key"):
        formats.read(tmp_path)


@pytest.mark.parametrize("fields", [{"r": 3}, {"r": 5, "delora_lambda": 4, "rank_pattern": {"tall": 2}}])
def test_delora(fields: dict[str, Any], tmp_path: Path) -> None:
    checked(linears, peft.DeloraConfig(**fields), tmp_path)


def test_delora_of_a_fresh_adapter_divides_by_no_zero(tmp_path: Path) -> None:
    peft.get_peft_model(seeded(linears), peft.DeloraConfig(target_modules=["wide"])).save_pretrained(tmp_path)
    assert formats.read(tmp_path)["wide"].norm() == 0.0


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 4, "gralora_k": 2, "alpha": 6},
        {"r": 8, "gralora_k": 4, "alpha": 3},
        {"r": 3, "gralora_k": 1, "alpha": 3},
        {"r": 4, "gralora_k": 2, "alpha": 6, "hybrid_r": 3},
    ],
)
@pytest.mark.parametrize("make", [linears, gpt2_layers])
def test_gralora(make: Make, fields: dict[str, Any], tmp_path: Path) -> None:
    transposed = {"fan_in_fan_out": True} if make is gpt2_layers else {}
    adapter = checked(make, peft.GraloraConfig(**fields, **transposed), tmp_path)
    assert {update.dim for update in adapter.values()} == {fields["r"] + fields.get("hybrid_r", 0)}


# LoHa, LoKr ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [linears, convolutions, conv1d])
@pytest.mark.parametrize("is_effective", [False, True])
def test_loha(make: Make, is_effective: bool, tmp_path: Path) -> None:
    config = peft.LoHaConfig(
        r=2, alpha=3, use_effective_conv2d=is_effective, rank_pattern={"tall": 3, "point": 1}, alpha_pattern={"two": 5}
    )
    adapter = checked(make, config, tmp_path / "a")
    checked_as_loaded(adapter, make, tmp_path / "b", "LOHA")


@pytest.mark.parametrize("make", [linears, convolutions])
@pytest.mark.parametrize(
    "fields",
    [
        {"r": 1},
        {"r": 64},
        {"r": 1, "decompose_both": True},
        {"r": 1, "decompose_factor": 2},
        {"r": 2, "decompose_factor": 4, "decompose_both": True},
        {"r": 1, "use_effective_conv2d": True, "rank_pattern": {"wide": 8, "point": 3}},
    ],
)
def test_lokr(make: Make, fields: dict[str, Any], tmp_path: Path) -> None:
    adapter = checked(make, peft.LoKrConfig(alpha=3, **fields), tmp_path / "a")
    assert {update.kind for update in adapter.values()} == {"lokr"}
    checked_as_loaded(adapter, make, tmp_path / "b", "LOKR")
    if make is linears or fields.get("use_effective_conv2d"):
        foreign = Adapter(dict(adapter))  # without the configuration that made the shapes
        checked_as_loaded(foreign, make, tmp_path / "c", "LOKR")


def test_a_field_of_lora_means_nothing_to_other_types(tmp_path: Path) -> None:
    before = checked(linears, peft.LoHaConfig(r=4, alpha=2), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": True}))
    assert {update.scale for update in before.values()} == {0.5}
    assert {update.scale for update in formats.read(tmp_path).values()} == {0.5}
    loaded = peft.PeftModel.from_pretrained(seeded(linears), tmp_path)
    assert loaded.base_model.model.wide.scaling == {"default": 0.5}


def test_lokr_of_a_convolution_in_one_dimension(tmp_path: Path) -> None:
    adapter = checked(conv1d, peft.LoKrConfig(r=1, alpha=3), tmp_path / "a")
    checked_as_loaded(adapter, conv1d, tmp_path / "b", "LOKR")


def test_lokr_whose_axes_peft_mixes_up_is_refused(tmp_path: Path) -> None:
    """PEFT's ΔW for a whole w2 [s, t, k] is no w1 ⊗ w2: it meets w1 [p, q] at the last two axes, then reshapes."""
    model = seeded(conv1d)
    before = weights(model)["one.weight"]
    wrapped = randomised(model, peft.LoKrConfig(r=12, alpha=12))
    wrapped.save_pretrained(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    w1, w2 = (tensors[f"base_model.model.one.lokr_w{number}"] for number in (1, 2))
    change = weights(wrapped.merge_and_unload())["one.weight"] - before
    assert error(np.kron(w1[None], w2).reshape(before.shape), change) < DOUBLE
    assert error(np.einsum("pq,stk->psqtk", w1, w2).reshape(before.shape), change) > 0.1
    with pytest.raises(AdapterError, match="one-dimensional convolution"):
        formats.read(tmp_path)


def test_lokr_whose_shapes_peft_has_not_becomes_lora(tmp_path: Path) -> None:
    checked(linears, peft.LoKrConfig(r=1, alpha=3), tmp_path / "a")
    weights_path = tmp_path / "a/adapter_model.safetensors"
    rng = np.random.default_rng(0)
    tensors = safetensors.numpy.load_file(weights_path)
    for site, shapes in {"wide": ((8, 1), (1, 12)), "tall": ((4, 1), (5, 8)), "square": ((2, 2), (8, 8))}.items():
        for key in [key for key in tensors if f".{site}." in key]:
            del tensors[key]
        tensors |= {
            f"base_model.model.{site}.lokr_w{number}": rng.standard_normal(shape)
            for number, shape in enumerate(shapes, start=1)
        }
    safetensors.numpy.save_file(tensors, weights_path)
    adapter = Adapter(dict(formats.read(tmp_path / "a")))
    with pytest.raises(AdapterError, match="not of low rank"):
        formats.write(adapter, tmp_path / "b", format="peft")
    low = Adapter({"wide": adapter["wide"]})
    formats.write(low, tmp_path / "c", format="peft")
    again = formats.read(tmp_path / "c")["wide"]
    assert again.kind == "lora" and error(again.delta_weight(np.float64), low["wide"].delta_weight(np.float64)) < DOUBLE


# Conversion to LORA, real files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.AdaLoraConfig(init_r=3, total_step=10, target_modules=["wide", "tall", "square"]),
        lambda: peft.DeloraConfig(r=2),
        lambda: peft.GraloraConfig(r=2, gralora_k=2),
    ],
)
def test_low_rank_types_are_written_as_lora(config: Callable[[], Any], tmp_path: Path) -> None:
    adapter = checked(linears, config(), tmp_path / "a")
    formats.write(adapter.with_sites(dict(adapter)), tmp_path / "b", format="peft")
    loaded = peft.PeftModel.from_pretrained(seeded(linears), tmp_path / "b").double()
    for site, update in adapter.items():
        theirs = getattr(loaded.base_model.model, site).get_delta_weight("default").detach().numpy()
        assert error(update.delta_weight(np.float64), theirs) < DOUBLE


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (lambda: peft.AdaLoraConfig(init_r=3, total_step=9), {"init_r": 2.5}, "positive integer"),
        (lambda: peft.AdaLoraConfig(init_r=3, total_step=9), {"lora_alpha": "6"}, "alpha must be a number"),
        (lambda: peft.GraloraConfig(r=2, gralora_k=2), {"alpha": float("inf")}, "finite"),
        (lambda: peft.LoKrConfig(r=1), {"r": 3, "alpha": True}, "alpha must be a number"),
        (lambda: peft.LoKrConfig(r=1), {"r": 3}, "not the one that the configuration states"),
    ],
)
def test_a_configuration_that_does_not_fit_is_an_error(
    config: Callable[[], Any], change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    randomised(seeded(linears), config()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterError, match=said):
        formats.read(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.AdaLoraConfig(init_r=3, total_step=9),
        lambda: peft.IA3Config(feedforward_modules=["tall"]),
        lambda: peft.LNTuningConfig(),
        lambda: peft.VeraConfig(r=3),
        lambda: peft.DeloraConfig(r=3),
        lambda: peft.GraloraConfig(r=2, gralora_k=2),
        lambda: peft.LoKrConfig(r=1),
    ],
)
def test_damaged_tensors_give_one_error_that_names_the_site(config: Callable[[], Any], tmp_path: Path) -> None:
    wrapped = randomised(seeded(linears), config())
    wrapped.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    for key in [key for key in tensors if ".wide." in key or key.startswith("base_model.vera")]:
        whole = tensors[key]
        for damage in (None, whole[:0], whole.astype(np.int64), whole.reshape(-1)[: whole.size - 1], whole[None, None]):
            tensors.pop(key)
            if damage is not None:
                tensors[key] = np.ascontiguousarray(damage)
            safetensors.numpy.save_file(tensors, path)
            try:
                adapter = formats.read(tmp_path)
                delta = adapter["wide"].delta_weight(base=np.ones((8, 12))) if "wide" in adapter else None
                assert delta is None or delta.shape == (8, 12)
            except AdapterError as caught:
                assert str(tmp_path) in str(caught) or "wide" in str(caught)
            tensors[key] = whole
