"""ComfyUI's dotted files and those of Flux, written by hand: suffixes, kinds side by side, damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from formats.lycoris_files import W, draw, saved, under
from lorascope import formats
from lorascope.errors import AdapterError

FLUX = "diffusion_model.double_blocks.0.img_attn.qkv"


@pytest.mark.parametrize(
    ("up", "down"),
    [
        ("lora_up.weight", "lora_down.weight"),
        ("lora_B.weight", "lora_A.weight"),
        ("lora_B.default.weight", "lora_A.default.weight"),
        ("lora_B", "lora_A"),
        ("lora.up.weight", "lora.down.weight"),
        ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
    ],
)
def test_every_suffix_of_comfyui_is_read(tmp_path: Path, up: str, down: str) -> None:
    B, A = draw(6, 2), draw(2, 4)
    tensors = {f"{FLUX}.{up}": B, f"{FLUX}.{down}": A, f"{FLUX}.alpha": np.array(1.0)}
    adapter = formats.read(saved(tmp_path / "x.safetensors", tensors))
    assert adapter.provenance.format == "comfyui"
    update = adapter["transformer.double_blocks.0.img_attn.qkv"]
    np.testing.assert_allclose(update.delta_weight(np.float64), 0.5 * B @ A, rtol=1e-14)
    formats.write(adapter, tmp_path / "y.safetensors", format="comfyui")
    assert set(safetensors.numpy.load_file(tmp_path / "y.safetensors")) == set(tensors)
    formats.write(adapter.with_sites(dict(adapter)), tmp_path / "z.safetensors", format="comfyui")
    edited = safetensors.numpy.load_file(tmp_path / "z.safetensors")
    assert set(edited) == {f"{FLUX}.{suffix}" for suffix in ("lora_up.weight", "lora_down.weight", "alpha")}
    again = formats.read(tmp_path / "z.safetensors")["transformer.double_blocks.0.img_attn.qkv"]
    np.testing.assert_array_equal(again.delta_weight(np.float64), update.delta_weight(np.float64))


def test_differences_replacements_and_lokr_under_dotted_names(tmp_path: Path) -> None:
    norm, lokr = "diffusion_model.blocks.0.norm3", "diffusion_model.layers.0.attention.out"
    unet, text = "diffusion_model.input_blocks.4.1.proj_in", "text_encoders.clip_l.transformer.text_model.encoder"
    tensors = {
        **under(norm, diff=draw(4), diff_b=draw(4)),
        **under(lokr, **W),
        **under(FLUX, lora_up__weight=draw(6, 2), lora_down__weight=draw(2, 4), diff_b=draw(6), alpha=1.0),
        **under("diffusion_model.patch_embedding", set_weight=draw(3, 2)),
        **under(unet, lora_up__weight=draw(6, 2), lora_down__weight=draw(2, 4), reshape_weight=np.array([6, 4])),
        **under(f"{text}.layers.0.mlp.fc1", lora_up__weight=draw(6, 2), lora_down__weight=draw(2, 4)),
        **under("lora_te1_text_projection", lora_up__weight=draw(6, 2), lora_down__weight=draw(2, 4)),
    }
    adapter = formats.read(saved(tmp_path / "x.safetensors", tensors))
    assert {site: update.kind for site, update in adapter.items()} == {
        "transformer.blocks.0.norm3": "full",
        "transformer.layers.0.attention.out": "lokr",
        "transformer.double_blocks.0.img_attn.qkv": "lora",
        "transformer.patch_embedding": "replaced",
        "unet.down_blocks.1.attentions.0.proj_in": "lora",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": "lora",
        "text_encoder.text_projection": "lora",
    }
    assert "reshaped-base" in [note.code for note in adapter.notes]
    biased = adapter["transformer.double_blocks.0.img_attn.qkv"]
    bias = biased.delta_bias(np.float64)
    assert bias is not None
    np.testing.assert_allclose(bias, tensors[f"{FLUX}.diff_b"], rtol=1e-15)
    base = draw(3, 2)
    replaced = adapter["transformer.patch_embedding"].delta_weight(np.float64, base=base)
    np.testing.assert_allclose(base + replaced, tensors["diffusion_model.patch_embedding.set_weight"], rtol=1e-12)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (under(FLUX, lora_B__weight=draw(6, 2)), "no partner"),
        (under(FLUX, lora_B__weight=draw(6, 2), lora_up__weight=draw(6, 2)), "two tensors are the B"),
        (under(FLUX, lora_B__weight=draw(6, 2), lora_A__weight=draw(2, 4), lora_A__bias=draw(2)), "first factor"),
        (
            under(FLUX, lora_B__weight=draw(6, 2), lora_A__weight=draw(2, 4), reshape_weight=np.array([9, 4])),
            "not the shape",
        ),
        (under(FLUX, lora_B__weight=draw(6, 2), lora_A__weight=draw(2, 4), diff=draw(6, 4)), "two kinds"),
    ],
)
def test_dotted_files_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, Any], said: str) -> None:
    with pytest.raises(AdapterError, match=said):
        formats.read(saved(tmp_path / "x.safetensors", tensors))


def test_damaged_flux_files_are_refused(tmp_path: Path) -> None:
    xlabs, control = "double_blocks.0.processor.qkv_lora1", "double_blocks.0.img_attn.qkv"
    half = under(xlabs, down__weight=draw(2, 4))
    for tensors, said in (
        (half, "no partner"),
        (half | under("double_blocks.0.processor.qkv_lora", up__weight=draw(2, 4)), "no known layer"),
        (under(control, lora_A__weight=draw(2, 4), lora_B__bias=draw(6)), "no partner"),
        (under(control, lora_A__weight=draw(2, 4), lora_A__bias=draw(2)), "first factor"),
    ):
        with pytest.raises(AdapterError, match=said):
            formats.read(saved(tmp_path / "x.safetensors", tensors))
