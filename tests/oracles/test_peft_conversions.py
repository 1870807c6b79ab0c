"""PEFT's LoHa, LoKr and AdaLoRA of convolutions, and fused weights, in formats of plain factors."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.conversion import convert
from lorascope.errors import AdapterError
from peft_layers import Layers

torch: Any = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft: Any = pytest.importorskip("peft")

SINGLE = 64 * float(np.finfo(np.float32).eps)


def layers() -> Layers:
    torch.manual_seed(0)
    return Layers(
        conv1=torch.nn.Conv2d(16, 24, (3, 2)),
        conv_shortcut=torch.nn.Conv2d(24, 36, 1),
        features=torch.nn.Conv2d(16, 25, 3),
        q_proj=torch.nn.Linear(24, 36),
    )


def line() -> Layers:
    torch.manual_seed(0)
    return Layers(conv1=torch.nn.Conv1d(16, 24, 3), q_proj=torch.nn.Linear(24, 36))


def saved(model: Any, config: Any, folder: Path) -> dict[str, Any]:
    """PEFT's adapter with random numbers, and beside it the base; the change that PEFT merges, by site."""
    before = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
    (folder / "base").mkdir(parents=True)
    safetensors.numpy.save_file(before, folder / "base" / "model.safetensors")
    config.target_modules = [name for name, _ in model.named_children()]
    wrapped = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder / "a")
    after = copy.deepcopy(wrapped).double().merge_and_unload().state_dict()
    return {
        name.removesuffix(".weight"): after[name].numpy() - base
        for name, base in before.items()
        if name.endswith(".weight")
    }


CONFIGS = {
    "loha": lambda: peft.LoHaConfig(r=2, alpha=3),
    "loha-effective": lambda: peft.LoHaConfig(r=2, alpha=3, use_effective_conv2d=True),
    "lokr": lambda: peft.LoKrConfig(r=1, alpha=3, decompose_both=True),
    "lokr-effective": lambda: peft.LoKrConfig(r=1, alpha=3, use_effective_conv2d=True),
    "adalora": lambda: peft.AdaLoraConfig(init_r=3, total_step=10, lora_alpha=5),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("to", "down", "up"), [("kohya", "lora_down", "lora_up"), ("diffusers", "lora_A", "lora_B")])
def test_a_convolution_keeps_its_layout_where_the_base_tells_it(
    name: str, to: str, down: str, up: str, tmp_path: Path
) -> None:
    expected = saved(layers(), CONFIGS[name](), tmp_path)
    target = tmp_path / "b.safetensors"
    report = convert(tmp_path / "a", target, to=to, base=tmp_path / "base")
    assert report.lost == () and report.relative_error < SINGLE
    tensors = safetensors.numpy.load_file(target)
    adapter = formats.read(target)
    for site, change in expected.items():
        found = adapter[site].delta_weight(np.float64)
        assert found.shape == change.shape
        assert np.abs(found - change).max() <= SINGLE * np.abs(change).max()
        shapes = {
            half: next(one.shape for key, one in tensors.items() if site in key and half in key) for half in (down, up)
        }
        rank = adapter[site].rank
        ones = (1,) * (change.ndim - 2)
        assert shapes == {down: (rank, *change.shape[1:]), up: (change.shape[0], rank, *ones)}
    with pytest.raises(AdapterError, match="MLX has no LoRA for such a layer"):
        convert(tmp_path / "a", tmp_path / "mlx", to="mlx", base=tmp_path / "base")


@pytest.mark.parametrize("name", ["loha", "lokr", "adalora"])
def test_without_the_base_a_convolution_stored_as_a_matrix_is_refused(name: str, tmp_path: Path) -> None:
    saved(layers(), CONFIGS[name](), tmp_path)
    for to in ("kohya", "diffusers", "mlx"):
        with pytest.raises(AdapterError, match=r"conv1: .*kernel is not in the file; --base") as caught:
            convert(tmp_path / "a", tmp_path / ("mlx" if to == "mlx" else f"{to}.safetensors"), to=to)
        assert "conv_shortcut" in str(caught.value) and "q_proj" not in str(caught.value)
    report = convert(tmp_path / "a", tmp_path / "b.safetensors", to="kohya", is_loss_allowed=True)
    assert {loss.what for loss in report.lost} == {"conv1", "conv_shortcut", "features"}
    assert set(formats.read(tmp_path / "b.safetensors")) == {"features", "q_proj"}  # features: told as unknown


def test_a_matrix_stays_one_where_the_kind_is_kept(tmp_path: Path) -> None:
    expected = saved(layers(), CONFIGS["loha"](), tmp_path)
    report = convert(tmp_path / "a", tmp_path / "b.safetensors", to="lycoris")
    assert report.lost == () and report.expanded == () and report.relative_error == 0
    back = convert(tmp_path / "b.safetensors", tmp_path / "c", to="peft")
    assert back.lost == () and formats.read(tmp_path / "c").provenance.kind == "loha"
    loaded = peft.PeftModel.from_pretrained(layers(), tmp_path / "c").double().merge_and_unload().state_dict()
    base = safetensors.numpy.load_file(tmp_path / "base" / "model.safetensors")
    for site, change in expected.items():
        moved = loaded[f"{site}.weight"].numpy() - base[f"{site}.weight"]
        assert np.abs(moved - change).max() <= SINGLE * np.abs(change).max()


def test_a_core_of_one_dimension_looks_like_one_of_two(tmp_path: Path) -> None:
    expected = saved(line(), CONFIGS["loha-effective"](), tmp_path)
    for to in ("kohya", "lycoris"):
        with pytest.raises(AdapterError, match="kernel is not in the file"):
            convert(tmp_path / "a", tmp_path / f"{to}.safetensors", to=to)
        convert(tmp_path / "a", tmp_path / f"{to}.safetensors", to=to, base=tmp_path / "base")
        adapter = formats.read(tmp_path / f"{to}.safetensors")
        for site, change in expected.items():
            found = adapter[site].delta_weight(np.float64)
            assert found.shape == change.shape
            assert np.abs(found - change).max() <= SINGLE * np.abs(change).max()
    assert adapter["conv1"].kind == "loha" and adapter["conv1"].layer == "conv1d"
    one = adapter.with_sites({"conv1": adapter["conv1"]})
    formats.write(one, tmp_path / "c", format="peft")
    loaded = peft.PeftModel.from_pretrained(line(), tmp_path / "c").double().merge_and_unload().state_dict()
    base = safetensors.numpy.load_file(tmp_path / "base" / "model.safetensors")
    moved = loaded["conv1.weight"].numpy() - base["conv1.weight"]
    assert np.abs(moved - expected["conv1"]).max() <= SINGLE * np.abs(moved).max()


def test_a_base_of_another_shape_is_refused(tmp_path: Path) -> None:
    saved(layers(), CONFIGS["loha"](), tmp_path)
    path = tmp_path / "base" / "model.safetensors"
    base = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(base | {"conv1.weight": base["conv1.weight"][:20].copy()}, path)
    with pytest.raises(AdapterError, match="does not fit the weight of the base") as caught:
        convert(tmp_path / "a", tmp_path / "b.safetensors", to="kohya", base=tmp_path / "base")
    assert caught.value.key == "conv1" and not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("dim", [12, 768])
def test_sam_lora_becomes_lora_of_the_fused_layer_with_the_same_update(dim: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count = {12: 2, 768: 24}[dim]
    tensors: dict[str, Any] = {}
    for number in range(count):
        tensors[f"w_a_{number:03d}"] = rng.standard_normal((2, dim)).astype(np.float32)
        tensors[f"w_b_{number:03d}"] = rng.standard_normal((dim, 2)).astype(np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    if dim == 12:  # not as many blocks as a published encoder has
        with pytest.raises(AdapterError, match="numbers are taken for all blocks"):
            convert(tmp_path / "a.safetensors", tmp_path / "b", to="peft")
    report = convert(tmp_path / "a.safetensors", tmp_path / "b", to="peft", is_loss_allowed=dim == 12)
    sites = [f"image_encoder.blocks.{block}.attn.qkv" for block in range(count // 2)]
    assert report.sites == count // 2 and sorted(report.expanded) == sorted(sites)
    torch.manual_seed(0)
    block = [Layers(attn=Layers(qkv=torch.nn.Linear(dim, 3 * dim))) for _ in sites]
    model = Layers(image_encoder=Layers(blocks=torch.nn.ModuleList(block)))
    before = {name: one.detach().double().numpy().copy() for name, one in model.state_dict().items()}
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "b").double().merge_and_unload().state_dict()
    source = formats.read(tmp_path / "a.safetensors")
    for number, site in enumerate(sites):
        change = loaded[f"{site}.weight"].numpy() - before[f"{site}.weight"]
        expected = np.zeros((3 * dim, dim))
        for half, begin in ((2 * number, 0), (2 * number + 1, 2 * dim)):
            delta = tensors[f"w_b_{half:03d}"].astype(float) @ tensors[f"w_a_{half:03d}"]
            expected[begin : begin + dim] = delta
            np.testing.assert_allclose(source[f"{site}[{begin}:{begin + dim}]"].delta_weight(np.float64), delta)
        assert np.abs(change - expected).max() <= SINGLE * np.abs(expected).max()
