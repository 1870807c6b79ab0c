"""kohya files, written as sd-scripts writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.errors import AdapterError

SITE = "lora_unet_down_blocks_0_attentions_0_proj_in"


def kohya(site: str = SITE, alpha: Any = 1.0, **extra: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    tensors = {
        f"{site}.lora_down.weight": rng.standard_normal((2, 6)).astype(np.float16),
        f"{site}.lora_up.weight": rng.standard_normal((5, 2)).astype(np.float16),
    }
    if alpha is not None:
        tensors[f"{site}.alpha"] = np.array(alpha, np.float16)
    return tensors | extra


def saved(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    safetensors.numpy.save_file(tensors, path, metadata)
    return path


def test_scale_is_alpha_over_rank_and_names_stay(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.safetensors", kohya(), {"ss_base_model_version": "sd_v1", "ss_network_alpha": "9"})
    adapter = formats.read(path)
    assert adapter.provenance.format == "kohya" and adapter.provenance.base_model == "sd_v1"
    assert list(adapter) == [SITE]
    assert (adapter[SITE].scale, adapter[SITE].alpha, adapter[SITE].dtype) == (0.5, 1.0, "float16")


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_a_missing_alpha_means_scale_one(tmp_path: Path, alpha: float | None) -> None:
    adapter = formats.read(saved(tmp_path / "x.safetensors", kohya(alpha=alpha)))
    assert adapter[SITE].scale == 1.0 and adapter[SITE].alpha is None
    assert [note.code for note in adapter.notes] == ["scale-assumed"]


@pytest.mark.parametrize("alpha", [[1.0, 2.0], float("nan")])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: Any) -> None:
    with pytest.raises(AdapterError) as caught:
        formats.read(saved(tmp_path / "x.safetensors", kohya(alpha=alpha)))
    assert caught.value.key == f"{SITE}.alpha"


def test_convolutions_and_the_tucker_core(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    up, mid, down = (
        rng.standard_normal((5, 2, 1, 1)),
        rng.standard_normal((2, 3, 3, 3)),
        rng.standard_normal((3, 4, 1, 1)),
    )
    tensors = {
        "lora_unet_t.lora_up.weight": up,
        "lora_unet_t.lora_mid.weight": mid,
        "lora_unet_t.lora_down.weight": down,
        "lora_unet_t.alpha": np.array(6.0),
        "lora_unet_c.lora_up.weight": up,
        "lora_unet_c.lora_down.weight": mid[:, :, :2, :],
        "lora_unet_c.alpha": np.array(1.0),
    }
    adapter = formats.read(saved(tmp_path / "x.safetensors", tensors))
    tucker = adapter["lora_unet_t"]
    expected = 2.0 * np.einsum("mnkl,im,nj->ijkl", mid, up[:, :, 0, 0], down[:, :, 0, 0])
    np.testing.assert_allclose(tucker.delta_weight(np.float64), expected, rtol=1e-12)
    assert tucker.base_shape == (5, 4, 3, 3)
    assert adapter["lora_unet_c"].base_shape == (5, 3, 2, 3)
    assert adapter.provenance.kind == "locon"


def test_a_tucker_core_that_would_explode_is_refused(tmp_path: Path) -> None:
    tensors = {
        "x.lora_up.weight": np.ones((1, 20_000, 1, 1), np.float16),
        "x.lora_mid.weight": np.ones((20_000, 1, 1, 1), np.float16),
        "x.lora_down.weight": np.ones((1, 20_000, 1, 1), np.float16),
    }
    with pytest.raises(AdapterError, match="too large to be multiplied out"):
        formats.read(saved(tmp_path / "x.safetensors", tensors))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{SITE}.lora_up.weight": None}, "has no partner"),
        ({f"{SITE}.dora_scale": np.ones((5, 1))}, "DoRA"),
        ({"lora_te_x.lokr_w1": np.ones((2, 2))}, "LyCORIS"),
        ({"lora_te_x.lora_mid.weight": np.ones((2, 2, 1, 1))}, "lora_mid without"),
    ],
)
def test_what_is_not_plain_kohya_is_refused(tmp_path: Path, tensors: dict[str, Any], said: str) -> None:
    changed = {key: value for key, value in (kohya() | tensors).items() if value is not None}
    with pytest.raises(AdapterError, match=said):
        formats.read(saved(tmp_path / "x.safetensors", changed))


def test_a_fused_flux_layer_is_told_from_its_blocks(tmp_path: Path) -> None:
    site = "lora_unet_double_blocks_0_img_attn_qkv"
    up = np.kron(np.eye(3), np.ones((4, 2)))
    tensors = {
        f"{site}.lora_up.weight": up,
        f"{site}.lora_down.weight": np.ones((6, 4)),
        f"{site}.alpha": np.array(2.0),
    }
    (note,) = formats.read(saved(tmp_path / "x.safetensors", tensors)).notes
    assert note.code == "fused-blocks" and note.site == site and "rank 2" in note.text


def test_other_adapters_are_written_with_kohya_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sites = {
        "unet.mid.to_q": LowRank(rng.standard_normal((4, 2)), rng.standard_normal((2, 3)), scale=0.3),
        "text_encoder.fc": LowRank(rng.standard_normal((4, 1)), rng.standard_normal((1, 3)), scale=0.0),
        "unet.conv": LowRank(
            rng.standard_normal((4, 2)), rng.standard_normal((2, 12)), scale=-1, layer="conv2d", kernel=(3, 2, 2)
        ),
    }
    formats.write(Adapter(sites), tmp_path / "x.safetensors", format="kohya")
    again = formats.read(tmp_path / "x.safetensors")
    assert list(again) == ["lora_te1_fc", "lora_unet_conv", "lora_unet_mid_to_q"]
    for ours, theirs in zip(["text_encoder.fc", "unet.conv", "unet.mid.to_q"], again.values(), strict=True):
        np.testing.assert_array_equal(theirs.delta_weight(np.float64), sites[ours].delta_weight(np.float64))


def test_what_kohya_has_no_place_for_is_refused(tmp_path: Path) -> None:
    one = LowRank(np.ones((2, 1)), np.ones((1, 2)))
    transposed = LowRank(np.ones((2, 1)), np.ones((1, 2)), is_transposed=True)
    for sites in ({"e": transposed}, {"a.b": one, "a_b": one}):
        with pytest.raises(AdapterError):
            formats.write(Adapter(sites), tmp_path / "x.safetensors", format="kohya")
    assert not list(tmp_path.iterdir())
