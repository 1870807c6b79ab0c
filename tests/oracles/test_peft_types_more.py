"""PEFT's structured types against PEFT: files that it saves are read as it merges them and as it runs them."""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.errors import AdapterError

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    gpt2 = pytest.importorskip("transformers.pytorch_utils")

pytestmark = pytest.mark.filterwarnings("ignore")

DOUBLE = 1e-11
SINGLE = 1e-5
"""Relative to the largest entry of ΔW: what PEFT works out in float64, and where it goes through float32."""

SIZES: dict[str, tuple[int, int]] = {"wide": (12, 8), "tall": (8, 20), "square": (12, 12)}
ODD: dict[str, tuple[int, int]] = {"wide": (11, 7), "tall": (7, 13), "square": (9, 9)}


@pytest.fixture(autouse=True)
def in_double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Layers(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Layers by name, none of which the forward pass of the whole needs."""

    def __init__(self, **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Any) -> Any:
        return x


def linear_layers(sizes: dict[str, tuple[int, int]]) -> Layers:
    torch.manual_seed(0)
    return Layers(**{name: torch.nn.Linear(*shape) for name, shape in sizes.items()})


def gpt2_layers(sizes: dict[str, tuple[int, int]]) -> Layers:
    torch.manual_seed(0)
    layers = {name: gpt2.Conv1D(out, in_) for name, (in_, out) in sizes.items()}
    for layer in layers.values():
        layer.weight.data = torch.randn(layer.weight.shape)
    return Layers(**layers)


def adapted(model: Layers, config: Any, *, spread: float = 0.5) -> Any:
    """The model with PEFT's adapter, every trained number random."""
    config.target_modules = [name for name, _ in model.named_children()]
    wrapped = peft.get_peft_model(model, config).double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    return wrapped


def merged_changes(wrapped: Any, model: Layers) -> dict[str, tuple[Any, Any, Any]]:
    """Site → weight before, weight after, what PEFT adds to it."""
    before = {name: layer.base_layer.weight.detach().clone() for name, layer in model.named_children()}
    merged = copy.deepcopy(wrapped).merge_and_unload()
    after = {name: layer.weight.detach() for name, layer in merged.named_children()}
    return {name: (before[name].numpy(), after[name].numpy(), (after[name] - before[name]).numpy()) for name in before}


def error(found: Any, expected: Any) -> float:
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 1e-4
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def saved(wrapped: Any, folder: Path) -> formats.Adapter:
    wrapped.save_pretrained(folder)
    return formats.read(folder)


def checked(wrapped: Any, model: Layers, folder: Path, tolerance: float, *, has_forward: bool = True) -> dict[str, Any]:
    """Compare every site with PEFT's merged weights and, for linear layers, with its forward pass; the updates."""
    # saved first: PEFT projects the stored tensors of some types as it merges them
    adapter = saved(wrapped, folder)
    changes = merged_changes(wrapped, model)
    assert set(adapter) == set(changes)
    worst = 0.0
    for site, (base, _, change) in changes.items():
        update: Any = adapter[site]
        worst = max(worst, error(update.delta_weight(np.float64, base=base), change))
        resolved = update.resolved(base.shape)
        assert resolved.base_shape == base.shape
        if update.needs != "base weight":
            assert resolved.norm() == pytest.approx(float(np.linalg.norm(change)), rel=10 * tolerance)
            assert resolved.rank >= np.linalg.matrix_rank(change, tol=1e-6 * np.abs(change).max())
        else:
            with pytest.raises(AdapterError, match="relative to the base weight"):
                update.delta_weight()
        if has_forward:
            layer = getattr(wrapped.base_model.model, site)
            in_ = resolved.shape[1]
            with torch.no_grad():
                run = layer(torch.eye(in_, dtype=torch.float64)) - layer(torch.zeros(1, in_, dtype=torch.float64))
            moved = base + update.delta_weight(np.float64, base=base)
            moved = moved if resolved.is_transposed else moved.T
            assert error(run.numpy(), moved) < tolerance
    assert worst < tolerance
    return dict(adapter)


@pytest.mark.parametrize(
    "fields", [{"r": 3, "randlora_alpha": 5}, {"r": 4, "sparse": True}, {"r": 5, "very_sparse": True}]
)
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_randlora(make: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    model = make(ODD)
    updates = checked(adapted(model, peft.RandLoraConfig(**fields)), model, tmp_path, DOUBLE)
    assert updates["wide"].kind == "randlora" and updates["wide"].needs == "base shape"


def test_randlora_without_its_projections_says_why(tmp_path: Path) -> None:
    wrapped = adapted(linear_layers(ODD), peft.RandLoraConfig(r=3, save_projection=False))
    with pytest.raises(AdapterError, match="random projections are not in the file"):
        saved(wrapped, tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_randlora_as_it_is_saved_by_default(dtype: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    model = linear_layers(ODD)
    config = peft.RandLoraConfig(r=3, target_modules=list(ODD))
    wrapped = peft.get_peft_model(model, config).to(getattr(torch, dtype)).eval()
    for parameter in wrapped.parameters():
        parameter.data.normal_()
    adapter = saved(wrapped, tmp_path)
    for site, (base, _, _) in ((s, (getattr(model, s).base_layer.weight.detach().float().numpy(), 0, 0)) for s in ODD):
        layer = getattr(wrapped.base_model.model, site)
        expected = layer.get_delta_weight("default").detach().numpy()
        assert error(adapter[site].delta_weight(np.float64, base=base), expected) < SINGLE


@pytest.mark.parametrize("is_topk_saved", [False, True])
@pytest.mark.parametrize("fields", [{"r": 3, "topk": 2}, {"r": 2, "topk": 4}, {"r": 3, "topk": 1}])
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_vblora(make: Any, fields: dict[str, Any], is_topk_saved: bool, tmp_path: Path) -> None:
    model = make({name: (3 * in_, 3 * out) for name, (in_, out) in ODD.items()})
    config = peft.VBLoRAConfig(num_vectors=9, vector_length=3, save_only_topk_weights=is_topk_saved, **fields)
    updates = checked(adapted(model, config), model, tmp_path, DOUBLE)
    assert updates["wide"].shape == (21, 33) and updates["wide"].rank == fields["r"]
    B, A, scale = updates["wide"].factors(np.float64)
    delta = updates["wide"].delta_weight(np.float64)
    np.testing.assert_allclose(scale * B @ A, delta.T if updates["wide"].is_transposed else delta)


@pytest.mark.parametrize("fields", [{"n_frequency": 20}, {"n_frequency": 7, "scaling": 3.5, "random_loc_seed": 5}])
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_fourierft(make: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)  # PEFT's spectrum has the default dtype and is filled with float32
    model = make(ODD)
    config = peft.FourierFTConfig(n_frequency_pattern={"tall": 31}, **fields)
    checked(adapted(model, config), model, tmp_path, SINGLE)


@pytest.mark.parametrize(
    "fields",
    [
        {"n_frequency": 20},
        {"n_frequency": 33, "scaling": 3.5, "random_loc_seed": 5},
        {"n_frequency": 9, "use_idwt": False},
    ],
)
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_waveft(make: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    model = make(ODD)
    checked(adapted(model, peft.WaveFTConfig(**fields)), model, tmp_path, SINGLE)


def test_waveft_with_a_longer_wavelet_is_refused(tmp_path: Path) -> None:
    wrapped = adapted(linear_layers(ODD), peft.WaveFTConfig(n_frequency=9, wavelet_family="db2"))
    with pytest.raises(AdapterError, match="not read by this version"):
        saved(wrapped, tmp_path)


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({"r": 2}, ODD),
        ({"r": 5}, ODD),
        ({"r": 7, "init_weights": False}, ODD),
        ({"r": 3, "mini_r": 4, "init_weights": "mini"}, SIZES),
        ({"r": 5, "mini_r": 2, "init_weights": "mini"}, SIZES),
        ({"r": 4, "init_weights": "bat"}, SIZES),
        ({"r": 2, "init_weights": "bat"}, SIZES),
    ],
)
@pytest.mark.parametrize("name", ["MISS", "BONE"])
def test_miss_and_bone(name: str, fields: dict[str, Any], sizes: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    if name == "BONE" and fields.get("init_weights") == "mini":
        pytest.skip("Bone had no such variant")
    model = linear_layers(sizes)
    wrapped = adapted(model, peft.MissConfig(**fields))
    updates = checked(wrapped, model, tmp_path, DOUBLE)
    assert updates["wide"].kind == ("bat" if fields.get("init_weights") == "bat" else "miss")
    if name == "BONE":  # the same tensors under the names of PEFT up to 0.17
        as_bone(tmp_path)
        again = formats.read(tmp_path)
        for site, update in updates.items():
            base = getattr(model, site).base_layer.weight.detach().numpy()
            np.testing.assert_array_equal(again[site].delta_weight(base=base), update.delta_weight(base=base))


def as_bone(folder: Path) -> None:
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = safetensors.numpy.load_file(weights)
    safetensors.numpy.save_file({key.replace("miss_", "bone_"): value for key, value in tensors.items()}, weights)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "BONE"}))


OFT_FIELDS: list[dict[str, Any]] = [
    {"oft_block_size": 4, "use_cayley_neumann": False},
    {"r": 2, "oft_block_size": 0, "use_cayley_neumann": False, "block_share": True},
    {"oft_block_size": 2, "use_cayley_neumann": False, "coft": True, "eps": 0.1},
    {"oft_block_size": 4, "use_cayley_neumann": False, "block_share": True, "coft": True, "eps": 0.3},
    *({"oft_block_size": 4, "use_cayley_neumann": True, "num_cayley_neumann_terms": t} for t in (1, 2, 3, 4, 5, 6, 9)),
    {"r": 1, "oft_block_size": 0, "use_cayley_neumann": True, "coft": True, "eps": 0.5},
]


@pytest.mark.parametrize("fields", OFT_FIELDS, ids=str)
def test_oft(fields: dict[str, Any], tmp_path: Path) -> None:
    model = linear_layers(SIZES)
    wrapped = adapted(model, peft.OFTConfig(**fields), spread=0.2)
    if fields.get("num_cayley_neumann_terms") == 1:
        for site, update in saved(wrapped, tmp_path).items():
            base = getattr(model, site).base_layer.weight.detach().numpy()
            assert not update.delta_weight(np.float64, base=base).any()  # one term of the series: the identity
        return
    checked(wrapped, model, tmp_path, SINGLE if fields.get("coft") else DOUBLE)


@pytest.mark.parametrize("size", [1, 3])
def test_oft_of_a_convolution_as_it_is_merged(size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Layers(conv=torch.nn.Conv2d(4, 6, size), other=torch.nn.Conv2d(8, 3, size))
    wrapped = adapted(model, peft.OFTConfig(oft_block_size=4, use_cayley_neumann=False), spread=0.2)
    checked(wrapped, model, tmp_path, DOUBLE, has_forward=False)
    image = torch.randn(1, 4, 5, 5)
    layer = wrapped.base_model.model.conv
    with torch.no_grad():
        run = layer(image)
        expected = (
            torch.nn.functional.conv2d(image, copy.deepcopy(wrapped).merge_and_unload().conv.weight)
            + (layer.base_layer.bias[:, None, None])
        )
    assert torch.allclose(run, expected) == (size == 1)  # PEFT's own two answers differ for larger kernels


def test_oft_of_an_embedding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Layers(tokens=torch.nn.Embedding(7, 12), types=torch.nn.Embedding(2, 8))
    wrapped = adapted(model, peft.OFTConfig(oft_block_size=4, use_cayley_neumann=False), spread=0.3)
    updates = checked(wrapped, model, tmp_path, DOUBLE, has_forward=False)
    assert updates["tokens"].layer == "embedding" and updates["tokens"].shape == (12, -1)
    with torch.no_grad():
        run = wrapped.base_model.model.tokens(torch.arange(7)).numpy()
    base = model.tokens.base_layer.weight.detach().numpy()
    assert error(run, base + updates["tokens"].delta_weight(np.float64, base=base)) < DOUBLE


def test_an_oft_series_of_peft_before_018_counts_its_last_term_twice(tmp_path: Path) -> None:
    model = linear_layers({"square": (4, 4)})
    wrapped = adapted(model, peft.OFTConfig(oft_block_size=4, use_cayley_neumann=True), spread=0.2)
    new = saved(wrapped, tmp_path)
    base = np.eye(4)
    stored = new["square"].stored["R"][0]
    skew = np.zeros((4, 4))
    skew[np.triu_indices(4, 1)] = stored
    skew -= skew.T
    fourth = np.linalg.matrix_power(skew, 4)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "peft_version"}))
    old = formats.read(tmp_path)["square"].delta_weight(np.float64, base=base)
    np.testing.assert_allclose(old, new["square"].delta_weight(np.float64, base=base) + fourth.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "fields", [{"boft_block_size": 4}, {"boft_block_size": 0, "boft_block_num": 1}, {"bias": "boft_only"}]
)
def test_boft(fields: dict[str, Any], tmp_path: Path) -> None:
    model = linear_layers(SIZES)
    wrapped = adapted(model, peft.BOFTConfig(**fields))
    checked(wrapped, model, tmp_path, DOUBLE)
    adapter = formats.read(tmp_path)  # a bias that is trained beside the rotation is no part of the update
    assert len(adapter.leftovers) == (len(SIZES) if "bias" in fields else 0)
    assert [note.code for note in adapter.notes] == ["saved-biases"] * ("bias" in fields)


@pytest.mark.parametrize("size", [1, 3])
def test_boft_of_a_convolution(size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Layers(conv=torch.nn.Conv2d(4, 6, size), other=torch.nn.Conv2d(8, 3, size))
    checked(adapted(model, peft.BOFTConfig(boft_block_size=4)), model, tmp_path, DOUBLE, has_forward=False)


class BlockDiagonal:
    """What PEFT's CUDA extension computes, on the CPU: [n, blocks, b, b] → [n, blocks · b, blocks · b]."""

    @staticmethod
    def apply(blocks: Any) -> Any:
        return torch.stack([torch.block_diag(*factor) for factor in blocks])


@pytest.mark.parametrize(("factors", "size"), [(2, 2), (2, 4), (3, 2)])
def test_boft_with_several_factors(factors: int, size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layer = pytest.importorskip("peft.tuners.boft.layer")
    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(layer, "FastBlockDiag", BlockDiagonal)
    model = linear_layers({"wide": (16, 6), "tall": (24, 30)})
    wrapped = adapted(model, peft.BOFTConfig(boft_block_size=size, boft_n_butterfly_factor=factors))
    updates = checked(wrapped, model, tmp_path, DOUBLE)
    assert updates["wide"].stored["R"].shape[0] == factors


@pytest.mark.parametrize("fields", [{"r": 4}, {"r": 3, "apply_GS": True}, {"r": 7}])
def test_hra(fields: dict[str, Any], tmp_path: Path) -> None:
    model = linear_layers(ODD)
    updates = checked(adapted(model, peft.HRAConfig(**fields)), model, tmp_path, DOUBLE)
    assert updates["wide"].rank == min(fields["r"], 11)


@pytest.mark.parametrize("size", [1, 3])
def test_hra_of_a_convolution(size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Layers(conv=torch.nn.Conv2d(4, 6, size), other=torch.nn.Conv2d(5, 3, size))
    checked(adapted(model, peft.HRAConfig(r=3)), model, tmp_path, DOUBLE, has_forward=False)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_c3a(size: int, tmp_path: Path) -> None:
    model = linear_layers(SIZES)
    updates = checked(adapted(model, peft.C3AConfig(block_size=size)), model, tmp_path, SINGLE)
    assert updates["wide"].shape == (8, 12) and updates["wide"].needs == "dense room"


@pytest.mark.parametrize("fields", [{"r": 1}, {"r": 2, "random_seed": 3}])
@pytest.mark.parametrize("is_windows", [False, True])
def test_shira(fields: dict[str, Any], is_windows: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if is_windows:
        monkeypatch.setattr("platform.system", lambda: "Windows")
    model = linear_layers(ODD)
    updates = checked(adapted(model, peft.ShiraConfig(**fields)), model, tmp_path, DOUBLE)
    assert updates["wide"].stored["indices"].dtype == (np.float32 if is_windows else np.int32)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_hira(make: Any, rank: int, tmp_path: Path) -> None:
    model = make(ODD)
    checked(adapted(model, peft.HiraConfig(r=rank, fan_in_fan_out=make is gpt2_layers)), model, tmp_path, DOUBLE)


def test_hira_of_convolutions_and_embeddings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Layers(
        line=torch.nn.Conv1d(4, 6, 3),
        point=torch.nn.Conv2d(4, 6, 1),
        plane=torch.nn.Conv2d(4, 6, (3, 2)),
        tokens=torch.nn.Embedding(7, 5),
    )
    checked(adapted(model, peft.HiraConfig(r=3)), model, tmp_path, DOUBLE, has_forward=False)


@pytest.mark.parametrize(("variant", "group"), list(itertools.product(["road_1", "road_2", "road_4"], [2, 4])))
def test_road(variant: str, group: int, tmp_path: Path) -> None:
    model = linear_layers({"wide": (11, 8), "tall": (7, 20)})
    wrapped = adapted(model, peft.RoadConfig(variant=variant, group_size=group))
    updates = checked(wrapped, model, tmp_path, DOUBLE)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    for site, update in updates.items():
        bias = getattr(model, site).base_layer.bias.detach().numpy()
        expected = getattr(merged, site).bias.detach().numpy() - bias
        assert error(update.delta_bias(np.float64, base=bias), expected) < DOUBLE
        assert update.delta_bias(np.float64) is None


@pytest.mark.parametrize("fields", [{"r": 2, "theta_d_length": 11}, {"r": 3, "theta_d_length": 200}])
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_unilora(make: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    model = make(ODD)
    updates = checked(adapted(model, peft.UniLoraConfig(save_indices=True, **fields)), model, tmp_path, DOUBLE)
    assert updates["wide"].rank == fields["r"] and updates["wide"].needs == "nothing"


def test_unilora_without_its_indices_is_refused(tmp_path: Path) -> None:
    wrapped = adapted(linear_layers(ODD), peft.UniLoraConfig(r=2, theta_d_length=11, save_indices=False))
    with pytest.raises(AdapterError, match="no tensors of the type UNILORA"):
        saved(wrapped, tmp_path)


@pytest.mark.parametrize("rank", [2, 5])
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_pvera(make: Any, rank: int, tmp_path: Path) -> None:
    model = make(ODD)
    checked(adapted(model, peft.PveraConfig(r=rank)), model, tmp_path, DOUBLE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"save_projection": False}, "projections are not in the file"), ({"sample_at_inference": True}, "at random")],
)
def test_pvera_that_is_not_whole_says_why(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    wrapped = adapted(linear_layers(ODD), peft.PveraConfig(r=2, **fields))
    with pytest.raises(AdapterError, match=message):
        saved(wrapped, tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 2},
        {"r": 3, "alpha": 5},
        {"r": 2, "decomposition_method": "qr", "alpha": 3},
        {"r": 2, "para": True},
        {"r": 3, "para": True, "decomposition_method": "qr"},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [linear_layers, gpt2_layers])
def test_deft(make: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    model = make(ODD)
    checked(adapted(model, peft.DeftConfig(**fields)), model, tmp_path, SINGLE)


def test_beft(tmp_path: Path) -> None:
    model = linear_layers(ODD)
    wrapped = adapted(model, peft.BeftConfig())
    adapter = saved(wrapped, tmp_path)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    for site, update in adapter.items():
        base = getattr(model, site).base_layer
        assert not update.delta_weight(np.float64, base=base.weight.detach().numpy()).any()
        expected = (getattr(merged, site).bias - base.bias).detach().numpy()
        found = update.delta_bias(np.float64, base=base.bias.detach().numpy())
        assert error(found, expected) < DOUBLE


@pytest.mark.parametrize("rank", [None, 2, 6])
def test_osf(rank: int | None, tmp_path: Path) -> None:
    model = linear_layers(ODD)
    config = peft.OSFConfig(effective_rank=rank)
    checked(adapted(model, config), model, tmp_path, SINGLE)


@pytest.mark.parametrize("function", ["relu", "tanh", "sigmoid", "silu", "linear"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_peanut(function: str, depth: int, tmp_path: Path) -> None:
    model = linear_layers(ODD)
    config = peft.PeanutConfig(r=3, depth=depth, act_fn=function, scaling=0.7)
    checked(adapted(model, config), model, tmp_path, DOUBLE)


def test_peanut_with_another_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="not read by this version"):
        saved(adapted(linear_layers(ODD), peft.PeanutConfig(r=3, act_fn="gelu")), tmp_path)


CONFIGS: dict[str, Any] = {
    "RANDLORA": lambda: peft.RandLoraConfig(r=3),
    "VBLORA": lambda: peft.VBLoRAConfig(r=2, num_vectors=9, vector_length=4),
    "VBLORA-topk": lambda: peft.VBLoRAConfig(r=2, num_vectors=9, vector_length=4, save_only_topk_weights=True),
    "FOURIERFT": lambda: peft.FourierFTConfig(n_frequency=20),
    "WAVEFT": lambda: peft.WaveFTConfig(n_frequency=20),
    "MISS": lambda: peft.MissConfig(r=2),
    "MISS-mini": lambda: peft.MissConfig(r=2, mini_r=4, init_weights="mini"),
    "MISS-bat": lambda: peft.MissConfig(r=2, init_weights="bat"),
    "OFT": lambda: peft.OFTConfig(oft_block_size=4, coft=True),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4),
    "HRA": lambda: peft.HRAConfig(r=3, apply_GS=True),
    "C3A": lambda: peft.C3AConfig(block_size=4),
    "SHIRA": lambda: peft.ShiraConfig(r=1),
    "HIRA": lambda: peft.HiraConfig(r=2),
    "ROAD": lambda: peft.RoadConfig(group_size=2),
    "UNILORA": lambda: peft.UniLoraConfig(r=2, theta_d_length=11, save_indices=True),
    "PVERA": lambda: peft.PveraConfig(r=2),
    "DEFT": lambda: peft.DeftConfig(r=2, alpha=3),
    "DEFT-qr": lambda: peft.DeftConfig(r=2, decomposition_method="qr"),
    "BEFT": lambda: peft.BeftConfig(),
    "OSF": lambda: peft.OSFConfig(),
    "PEANUT": lambda: peft.PeanutConfig(r=2, depth=1),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_put_into_the_base_model_it_makes_what_peft_merges(name: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    model = linear_layers({"layer": (12, 8), "other": (8, 20)}).double()
    base = copy.deepcopy(model)
    wrapped = adapted(model, CONFIGS[name]())
    adapter = saved(wrapped, tmp_path)
    merged = wrapped.merge_and_unload()
    with adapter.apply_to(base):
        for site in adapter:
            one, two = getattr(base, site), getattr(merged, site)
            assert torch.allclose(one.weight, two.weight, rtol=SINGLE, atol=SINGLE)
            assert torch.allclose(one.bias, two.bias, rtol=SINGLE, atol=SINGLE)
    assert list(adapter) == ["layer", "other"]


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_that_was_not_edited_is_written_as_it_was(name: str, tmp_path: Path) -> None:
    adapter = saved(adapted(linear_layers({"layer": (12, 8)}), CONFIGS[name]()), tmp_path / "source")
    formats.write(adapter, tmp_path / "target")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        first, second = ((tmp_path / folder / file) for folder in ("source", "target"))
        if file.endswith("json"):
            assert first.read_text() == second.read_text()
        else:
            one, two = safetensors.numpy.load_file(first), safetensors.numpy.load_file(second)
            assert set(one) == set(two) and all(np.array_equal(one[key], two[key]) for key in one)


HOSTILE: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    3,
    10**30,
    2.5,
    1e300,
    -1e9,
    "",
    "x" * 200,
    "bat",
    [],
    [1],
    {},
    {"a": 1},
]


def damaged(tensor: Any) -> Iterator[Any]:
    """The tensor in ways that no trainer saves it."""
    yield tensor.astype(np.int64)
    yield tensor.astype(np.float16)
    yield np.full_like(tensor, 2**31 - 1 if tensor.dtype.kind in "iu" and tensor.itemsize > 2 else 120)
    yield np.zeros_like(tensor)
    yield np.zeros((0, *tensor.shape[1:]), tensor.dtype)
    yield tensor.reshape(-1)
    yield np.ascontiguousarray(tensor.T)
    yield tensor[None]
    yield np.concatenate((tensor, tensor))
    yield np.ascontiguousarray(tensor[..., :1])
    yield np.zeros((), tensor.dtype)
    if tensor.dtype.kind == "f":
        yield np.full_like(tensor, np.nan)
        yield np.full_like(tensor, 1e300)


def use(folder: Path, shape: tuple[int, int]) -> bool:
    """Whether the file could be read and used; every failure must be one of ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            updates: dict[str, Any] = dict(formats.read(folder))
            for update in updates.values():
                update.delta_weight(np.float64, base=np.ones(shape))
                update.delta_bias(np.float64, base=np.ones(shape[0]))
                if update.needs != "base weight":
                    resolved = update.resolved(shape)
                    resolved.norm()
                    resolved.spectrum()
    except AdapterError:
        return False
    return True


@pytest.mark.parametrize("name", CONFIGS)
def test_damaged_files_give_one_kind_of_error(name: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    wrapped = adapted(linear_layers({"layer": (12, 8)}), CONFIGS[name]())
    wrapped.save_pretrained(tmp_path)
    weights, config_file = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors, config = safetensors.numpy.load_file(weights), json.loads(config_file.read_text())
    assert use(tmp_path, (8, 12))
    refused = 0
    for key, tensor in tensors.items():
        for value in (None, *damaged(tensor)):
            changed = {other: one for other, one in tensors.items() if other != key} | (
                {} if value is None else {key: value}
            )
            safetensors.numpy.save_file(changed, weights)
            refused += not use(tmp_path, (8, 12))
    assert refused >= 6 * len(tensors)
    safetensors.numpy.save_file(tensors, weights)
    for field, value in itertools.product(config, HOSTILE):
        if field not in ("peft_type", "target_modules"):
            config_file.write_text(json.dumps(config | {field: value}))
            use(tmp_path, (8, 12))
    config_file.write_text(json.dumps(config))
    for shape in ((1, 1), (7, 12), (8, 11), (12, 8), (16, 24)):
        use(tmp_path, shape)
