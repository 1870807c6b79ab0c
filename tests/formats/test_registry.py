"""The laws of every registered format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.errors import AdapterError
from lorascope.formats.contents import Contents
from lorascope.formats.registry import Format

A, B = np.ones((2, 3), np.float32), np.ones((4, 2), np.float32)
SAMPLES = {
    "peft": {"base_model.model.q.lora_A.weight": A, "base_model.model.q.lora_B.weight": B},
    "diffusers": {"unet.q.lora.down.weight": A, "unet.q.lora.up.weight": B},
    "kohya": {"lora_unet_q.lora_down.weight": A, "lora_unet_q.lora_up.weight": B},
    "mlx": {"model.q.lora_a": A.T.copy(), "model.q.lora_b": B.T.copy()},
    "lycoris": {f"lora_unet_q.hada_w{half}_{end}": x for half in "12" for end, x in (("a", B), ("b", A))},
    "comfyui": {"diffusion_model.q.lora_A.weight": A, "diffusion_model.q.lora_B.weight": B},
    "xlabs": {
        "double_blocks.0.processor.qkv_lora1.down.weight": np.ones((2, 6), np.float32),
        "double_blocks.0.processor.qkv_lora1.up.weight": np.ones((18, 2), np.float32),
    },
    "bfl-control": {
        "double_blocks.0.img_attn.qkv.lora_A.weight": np.ones((2, 6), np.float32),
        "double_blocks.0.img_attn.qkv.lora_B.weight": np.ones((18, 2), np.float32),
    },
    "loralib": {"layer.q.lora_A": A, "layer.q.lora_B": B},
    "cloneofsimo": {"unet:0:down": A, "unet:0:up": B},
    "sam-lora": {"w_a_000": A, "w_b_000": B, "w_a_001": A, "w_b_001": B},
}
ELSEWHERE = ("gguf", "cloneofsimo-list")  # no safetensors: tests/formats/test_gguf.py, test_small_formats.py
WRITTEN = [member.name for member in formats.formats() if member.write and member.name in SAMPLES]


@pytest.mark.parametrize("member", formats.formats(), ids=lambda member: member.name)
def test_a_member_states_its_name_title_and_reference(member: Format) -> None:
    assert member.name == member.name.lower() and member.title and member.reference.startswith("https://")
    assert member.read is None or member.name in SAMPLES or member.name in ELSEWHERE


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_recognised_by_one_format_at_the_top(name: str) -> None:
    contents = Contents(SAMPLES[name])
    found = {member.name: evidence for member in formats.formats() if (evidence := member.recognise(contents))}
    strongest = max(evidence.strength for evidence in found.values())
    assert [one for one, evidence in found.items() if evidence.strength == strongest] == [name]


@pytest.mark.parametrize("name", WRITTEN)
def test_writing_what_was_read_changes_no_byte(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    extra = {"something.else": np.arange(3)}
    safetensors.numpy.save_file(SAMPLES[name] | extra, source, {"note": "kept"})
    adapter = formats.read(source)
    assert adapter.provenance.format == name
    target = tmp_path / ("out" if name in ("peft", "mlx") else "out.safetensors")
    formats.write(adapter, target, format=name)
    written = next(target.glob("*.safetensors")) if target.is_dir() else target
    assert written.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", ["peft", "kohya"])
def test_an_edited_adapter_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sites = {
        f"lora_s{rank}": LowRank(
            rng.standard_normal((6, rank)).astype(np.float32), rng.standard_normal((rank, 5)).astype(np.float32), scale
        )
        for rank, scale in ((1, 0.3), (2, 2.0), (4, -0.7), (7, 3.0))
    }
    target = tmp_path / "out.safetensors"
    formats.write(Adapter(sites), target, format=name)
    again = formats.read(target)
    for site, update in sites.items():
        assert again[site].scale == update.scale
        np.testing.assert_array_equal(again[site].factors().B, update.B)
        np.testing.assert_array_equal(again[site].factors().A, update.A)


@pytest.mark.parametrize("member", [one for one in formats.formats() if one.write is None], ids=lambda one: one.name)
def test_a_format_that_is_not_written_says_so(member: Format, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="not written by this version"):
        formats.write(Adapter({"q": LowRank(B, A)}), tmp_path / "x", format=member.name)


def test_an_adapter_without_sites_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="without sites"):
        formats.write(Adapter({}), tmp_path / "x")
    assert not list(tmp_path.iterdir())
