"""A scale that a person gave is in the file that is written, whatever the format, the one that was read too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.conversion import convert
from lorascope.errors import AdapterError
from lorascope.formats.given_scale import is_scale_open

A, B = np.arange(12, dtype=np.float32).reshape(2, 6) - 5.5, np.arange(8, dtype=np.float32).reshape(4, 2) - 3.5
_FLAT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"

UNSTATED = {
    "kohya": {f"{_FLAT}.lora_down.weight": A, f"{_FLAT}.lora_up.weight": B},
    "comfyui": {"diffusion_model.layers.0.q.lora_A.weight": A, "diffusion_model.layers.0.q.lora_B.weight": B},
    "diffusers": {"unet.a.attn.to_q.lora_A.weight": A, "unet.a.attn.to_q.lora_B.weight": B},
    "loralib": {"l.q.lora_A": A, "l.q.lora_B": B},
    "mlx": {"model.layers.0.q.lora_a": A.T.copy(), "model.layers.0.q.lora_b": B.T.copy()},
    "peft": {"base_model.model.q.lora_A.weight": A, "base_model.model.q.lora_B.weight": B},
}
"""Format → the tensors of a file that does not state its scale."""

_NAMES = {"mlx": "adapters.safetensors", "peft": "adapter_model.safetensors"}


@pytest.mark.parametrize("format", UNSTATED)
def test_it_is_written_to_the_format_that_was_read(format: str, tmp_path: Path) -> None:
    source = tmp_path / "a" / _NAMES.get(format, "a.safetensors")
    source.parent.mkdir()
    safetensors.numpy.save_file(UNSTATED[format], source)
    member = formats.format_named(format)
    target = tmp_path / ("b" if member.is_folder else "b.safetensors")
    (assumed,) = formats.read(source, format=format).values()
    for scale in (3.0, assumed.scale):
        given = formats.read(source, format=format, scale=scale)
        out = target.with_name(f"{scale:g}-{target.name}")
        report = convert(source, out, to=format, source_format=format, scale=scale)
        written = formats.read(out)
        assert report.lost == () and list(written) == list(given)
        for site in given:
            expected = given[site].delta_weight(np.float64)
            np.testing.assert_allclose(written[site].delta_weight(np.float64), expected, rtol=1e-6)
        assert not is_scale_open(written)
        with pytest.raises(AdapterError, match="states its scale"):  # it is not open to be given once more
            formats.read(out, scale=2.0)


def test_a_stated_alpha_is_that_of_the_given_scale(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    safetensors.numpy.save_file(UNSTATED["kohya"], source)
    convert(source, target, to="kohya", scale=3.0)
    tensors = safetensors.numpy.load_file(target)
    assert tensors[f"{_FLAT}.alpha"] == 6.0  # 3 · rank
    np.testing.assert_array_equal(tensors[f"{_FLAT}.lora_up.weight"], B)


def test_a_file_is_the_very_one_where_no_scale_is_given(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    safetensors.numpy.save_file(UNSTATED["kohya"], source)
    assert convert(source, target, to="kohya").is_identical
