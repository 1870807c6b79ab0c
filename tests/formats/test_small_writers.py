"""Files of loralib, cloneofsimo, Sam_LoRA, XLabs, BFL control and ComfyUI: what their own programs find in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter, LowRank, Provenance, Update
from lorascope.conversion import convert, relative_error
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parts, built

RNG = np.random.default_rng(0)
QKV = "transformer.double_blocks.3.img_attn.qkv"
SAM = "image_encoder.blocks.0.attn.qkv"
TE = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


def low_rank(scale: float = 0.5, out: int = 6, rank: int = 2, **options: Any) -> LowRank:
    B, A = RNG.standard_normal((out, rank)).astype(np.float32), RNG.standard_normal((rank, 4)).astype(np.float32)
    return LowRank(B, A, scale, **options)


def written(folder: Path, format: str, sites: dict[str, Update], name: str = "a.safetensors") -> dict[str, Any]:
    formats.write(Adapter(sites), folder / name, format=format)
    return safetensors.numpy.load_file(folder / name)


def test_loralib_has_the_scale_in_b_for_its_own_default(tmp_path: Path) -> None:
    """A layer without lora_alpha computes with 1/r · lora_B · lora_A."""
    update = low_rank(0.3)
    tensors = written(tmp_path, "loralib", {"h.q": update})
    assert sorted(tensors) == ["h.q.alpha", "h.q.lora_A", "h.q.lora_B"] and tensors["h.q.alpha"] == 1
    computed = tensors["h.q.lora_B"].astype(np.float64) @ tensors["h.q.lora_A"] / 2
    np.testing.assert_allclose(computed, update.delta_weight(np.float64), rtol=1e-6, atol=1e-7)
    assert formats.read(tmp_path / "a.safetensors").notes == ()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e5m2"])
def test_a_pickled_state_dict_of_each_dtype(dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    sites: dict[str, Update] = {"h.q": low_rank(0.5)}
    formats.write(Adapter(sites), tmp_path / "a.pt", format="loralib", dtype=dtype)
    again = formats.read(tmp_path / "a.pt")
    assert again["h.q"].dtype == dtype and relative_error(sites["h.q"], again["h.q"]) < 0.2
    report = convert(tmp_path / "a.pt", tmp_path / "b.pt", to="loralib")
    assert report.is_identical and report.lost == ()


def test_parts_of_a_merged_layer_become_one_again(tmp_path: Path) -> None:
    A, B = RNG.standard_normal((4, 7)), RNG.standard_normal((10, 2))
    safetensors.numpy.save_file(
        {"c.lora_A": A, "c.lora_B": B, "c.weight": np.ones((15, 7))}, tmp_path / "a.safetensors"
    )
    adapter = formats.read(tmp_path / "a.safetensors")
    formats.write(replace(adapter, original=None), tmp_path / "b.safetensors", format="loralib")
    again = safetensors.numpy.load_file(tmp_path / "b.safetensors")
    assert sorted(again) == ["c.lora_A", "c.lora_B", "c.weight"]  # the assumed alpha is not made a stated one
    np.testing.assert_array_equal(again["c.lora_A"], A)
    np.testing.assert_array_equal(again["c.lora_B"], B)
    for parts in ({"c.#1"}, {"c.#0"}, {"c", "c.#0"}):
        sites: dict[str, Update] = {part: low_rank() for part in parts}
        with pytest.raises(AdapterError, match="do not fit together"):
            formats.write(Adapter(sites), tmp_path / "c.safetensors", format="loralib")


def test_cloneofsimo_numbers_ranks_and_classes(tmp_path: Path) -> None:
    """``parse_safeloras`` asks for a list of classes for each component and a rank for each layer."""
    convolution = LowRank(RNG.standard_normal((5, 2)), RNG.standard_normal((2, 27)), layer="conv2d", kernel=(3, 3, 3))
    sites: dict[str, Update] = {"unet:0": low_rank(0.5), "unet:1": convolution, "text_encoder:0": low_rank(rank=3)}
    tensors = written(tmp_path, "cloneofsimo", sites)
    assert tensors["unet:1:up"].shape == (5, 2, 1, 1) and tensors["unet:1:down"].shape == (2, 3, 3, 3)
    with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert {name: json.loads(metadata[name]) for name in metadata} == {
        "unet": ["CrossAttention", "Attention", "GEGLU"],
        "text_encoder": ["CLIPAttention"],
        "unet:0:rank": 2,
        "unet:1:rank": 2,
        "text_encoder:0:rank": 3,
    }
    (tmp_path / "own").mkdir()
    safetensors.numpy.save_file(tensors, tmp_path / "own" / "a.safetensors", metadata | {"unet": '["Mine"]'})
    convert(tmp_path / "own" / "a.safetensors", tmp_path / "b.safetensors", to="cloneofsimo", dtype="float16")
    assert formats.read(tmp_path / "b.safetensors").provenance.metadata["unet"] == '["Mine"]'


def test_a_list_is_up_down_up_down(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    sites: dict[str, Update] = {"0001": low_rank(2.0), "0000": low_rank(0.5)}
    formats.write(Adapter(sites), tmp_path / "a.pt", format="cloneofsimo-list")
    items = torch.load(tmp_path / "a.pt", weights_only=True)
    assert [tuple(item.shape) for item in items] == [(6, 2), (2, 4)] * 2
    np.testing.assert_array_equal(items[0].numpy() @ items[1].numpy(), sites["0000"].delta_weight())
    with pytest.raises(AdapterError, match="tells by its suffix"):
        formats.write(Adapter(sites), tmp_path / "a.safetensors", format="cloneofsimo-list")


def test_xlabs_and_control_names(tmp_path: Path) -> None:
    part = low_rank(0.5, out=9)
    names = ("img_attn.proj", "txt_attn.qkv", "txt_attn.proj", "img_attn.qkv")
    sites: dict[str, Update] = {f"transformer.double_blocks.3.{name}": low_rank(0.5) for name in names}
    sites |= {"transformer.single_blocks.0.linear1[0:9]": part, "transformer.single_blocks.0.linear2": low_rank()}
    tensors = written(tmp_path, "xlabs", sites)
    ends = ("double_blocks.3.processor.proj_lora1", "double_blocks.3.processor.qkv_lora2")
    ends += ("double_blocks.3.processor.proj_lora2", "double_blocks.3.processor.qkv_lora1")
    ends += ("single_blocks.0.processor.qkv_lora", "single_blocks.0.processor.proj_lora")
    assert set(tensors) == {f"{end}.{half}.weight" for end in ends for half in ("up", "down")}
    again = formats.read(tmp_path / "a.safetensors")
    for site, update in sites.items():  # halving is exact
        np.testing.assert_array_equal(again[site].delta_weight(), update.delta_weight())

    norm = built("replaced", Parts("x", {"weight": np.ones(4, np.float32)}))
    biased = low_rank(0.5, bias=np.ones(6, np.float32))
    sites = {QKV: biased, "transformer.double_blocks.3.img_attn.norm.key_norm": norm}
    tensors = written(tmp_path, "bfl-control", sites, "b.safetensors")
    name = "double_blocks.3.img_attn"
    keys = {f"{name}.qkv.lora_A.weight", f"{name}.qkv.lora_B.weight", f"{name}.qkv.lora_B.bias"}
    assert set(tensors) == keys | {f"{name}.norm.key_norm.scale"}
    np.testing.assert_array_equal(tensors[f"{name}.qkv.lora_B.bias"], np.full(6, 0.5))
    report = convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", to="bfl-control", dtype="float16")
    assert report.lost == () and report.sites == 2


def test_comfyui_names_are_those_that_it_looks_for(tmp_path: Path) -> None:
    loha = built("loha", Parts("x", {name: low_rank().B[:2] for name in ("w1_a", "w1_b", "w2_a", "w2_b")}))
    diffusers = "transformer.transformer_blocks.0.attn.to_q"
    sites: dict[str, Update] = {QKV: low_rank(0.5), TE: loha, diffusers: low_rank(2.0)}
    tensors = written(tmp_path, "comfyui", sites)
    lora = {"lora_up.weight", "lora_down.weight", "alpha"}
    assert {key for key in tensors if "hada" not in key} == {
        *(f"diffusion_model.double_blocks.3.img_attn.qkv.{end}" for end in lora),
        *(f"{diffusers}.{end}" for end in lora),
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.alpha",
    }
    again = formats.read(tmp_path / "a.safetensors")
    assert again.provenance.format == "comfyui" and set(again) == set(sites)


@pytest.mark.parametrize(
    ("format", "sites", "match"),
    [
        ("cloneofsimo", {"h.q": low_rank()}, "number their layers"),
        ("cloneofsimo", {"unet:1": low_rank()}, "without a gap"),
        ("cloneofsimo", {"unet:0": low_rank(bias=np.ones(6))}, "no bias"),
        ("cloneofsimo-list", {"q": low_rank()}, "numbers and no names"),
        ("cloneofsimo-list", {"0001": low_rank()}, "without a gap"),
        ("sam-lora", {"blocks.0.q": low_rank()}, "hold q and v"),
        ("sam-lora", {f"{SAM}[0:5]": low_rank()}, "hold q and v"),
        ("sam-lora", {f"{SAM}[6:12]": low_rank()}, "hold q and v"),
        ("sam-lora", {f"{SAM}[12:18]": low_rank()}, "without a gap"),
        ("sam-lora", {f"{SAM}[0:6]": low_rank(is_transposed=True)}, "no LoRA for such a layer"),
        ("xlabs", {"transformer.single_blocks.0.linear1": low_rank()}, "only the attention layers"),
        ("xlabs", {"transformer.single_blocks.0.linear1[0:5]": low_rank()}, "only the attention layers"),
        ("xlabs", {"transformer.double_blocks.0.img_mlp.0": low_rank()}, "only the attention layers"),
        ("bfl-control", {"transformer.transformer_blocks.0.q": low_rank()}, "only layers of Flux"),
        ("bfl-control", {QKV: built("replaced", Parts("x", {"weight": np.ones((6, 4))}))}, "only layers of Flux"),
        ("comfyui", {"unet.conv_in": low_rank()}, "kohya files"),
        ("comfyui", {"model.layers.0.q": low_rank()}, "no name for this site"),
        ("comfyui", {"text_encoder_2.encoder.block.0.q": low_rank()}, "no name for this site"),
        ("comfyui", {TE: low_rank(bias=np.ones(6))}, "no bias"),
        ("loralib", {"q": low_rank(is_transposed=True)}, "tells wrong here"),
        ("loralib", {"wte": low_rank()}, "tells wrong here"),
        ("loralib", {"q": low_rank(bias=np.ones(6))}, "no bias"),
        ("loralib", {"q": LowRank(np.ones((2, 1)), np.ones((1, 4)), layer="conv2d", kernel=(1, 2, 2))}, "convolution"),
    ],
)
def test_what_has_no_place_is_refused(format: str, sites: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=match):
        formats.write(Adapter(sites, Provenance()), tmp_path / f"a{formats.format_named(format).suffix}", format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("member", [one for one in formats.formats() if "lora" in one.writes], ids=lambda one: one.name)
def test_an_adapter_without_sites_is_written_to_no_format(member: formats.Format, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="without sites"):
        formats.write(Adapter({}), tmp_path / f"a{'' if member.is_folder else member.suffix}", format=member.name)


@pytest.mark.parametrize(
    ("format", "site"),
    [
        ("cloneofsimo", f"unet:{'1' * 5000}"),
        ("cloneofsimo", "unet:\u0660"),
        ("cloneofsimo-list", "1" * 5000),
        ("xlabs", f"transformer.single_blocks.0.linear1[0:{'9' * 5000}]"),
    ],
)
def test_numbers_that_no_file_has_are_refused(format: str, site: str, tmp_path: Path) -> None:
    """Python reads no integer of more than 4300 digits, and takes digits of all scripts."""
    with pytest.raises(AdapterError, match="expected a site such as"):
        formats.write(Adapter({site: low_rank()}), tmp_path / "a.pt", format=format)


def test_two_sites_of_one_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="two sites have one number"):
        formats.write(Adapter({"unet:0": low_rank(), "unet:00": low_rank()}), tmp_path / "a", format="cloneofsimo")
