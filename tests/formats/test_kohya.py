"""kohya files, written as sd-scripts writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.errors import AdapterError
from lorascope.formats.kohya_names import SITES_KEY, sites_of, unflattened
from lorascope.formats.kohya_vocabulary import DENOISERS, TEXT_ENCODERS, diffusers_path, expanded
from lorascope.formats.safetensors_file import write_safetensors

NAME = "lora_unet_down_blocks_0_attentions_0_proj_in"
SITE = "unet.down_blocks.0.attentions.0.proj_in"


def kohya(site: str = NAME, alpha: Any = 1.0, **extra: Any) -> dict[str, Any]:
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


def test_scale_is_alpha_over_rank_and_names_get_their_dots_back(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.safetensors", kohya(), {"ss_base_model_version": "sd_v1", "ss_network_alpha": "9"})
    adapter = formats.read(path)
    assert adapter.provenance.format == "kohya" and adapter.provenance.base_model == "sd_v1"
    assert list(adapter) == [SITE]
    assert (adapter[SITE].scale, adapter[SITE].alpha, adapter[SITE].dtype) == (0.5, 1.0, "float16")


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64"]
)
def test_alpha_is_read_in_every_dtype_that_files_have(tmp_path: Path, dtype: str) -> None:
    """Files saved in bfloat16 have their alphas in it too."""
    alpha = np.array(4, getattr(ml_dtypes, dtype, dtype))
    write_safetensors(tmp_path / "x.safetensors", kohya() | {f"{NAME}.alpha": alpha})
    adapter = formats.read(tmp_path / "x.safetensors")
    assert (adapter[SITE].scale, adapter[SITE].alpha, adapter.notes) == (2.0, 4.0, ())


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_a_missing_alpha_means_scale_one(tmp_path: Path, alpha: float | None) -> None:
    adapter = formats.read(saved(tmp_path / "x.safetensors", kohya(alpha=alpha)))
    assert adapter[SITE].scale == 1.0 and adapter[SITE].alpha is None
    assert [note.code for note in adapter.notes] == ["scale-assumed"]


@pytest.mark.parametrize("alpha", [[1.0, 2.0], float("nan")])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: Any) -> None:
    with pytest.raises(AdapterError) as caught:
        formats.read(saved(tmp_path / "x.safetensors", kohya(alpha=alpha)))
    assert caught.value.key == f"{NAME}.alpha"


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
    with pytest.raises(AdapterError, match="a Tucker core is too large"):
        formats.read(saved(tmp_path / "x.safetensors", tensors))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{NAME}.lora_up.weight": None}, "has no partner"),
        ({f"{NAME}.dora_scale": np.ones((4, 1))}, "fits neither axis"),
        ({f"{NAME}.dora_scale": np.ones((5, 1), np.int32)}, "no floating-point numbers"),
        ({f"{NAME}.diff_b": np.ones(4)}, "does not fit"),
        ({f"{NAME}.bias_values": np.ones(4)}, "sparse change of the bias"),
        ({f"{NAME}.hada_w1_a": np.ones((5, 2))}, "two kinds of update"),
        ({"lora_te_x.lora_mid.weight": np.ones((2, 2, 1, 1))}, "stands without lora_up and lora_down"),
    ],
)
def test_what_is_not_plain_kohya_is_refused(tmp_path: Path, tensors: dict[str, Any], said: str) -> None:
    changed = {key: value for key, value in (kohya() | tensors).items() if value is not None}
    with pytest.raises(AdapterError, match=said):
        formats.read(saved(tmp_path / "x.safetensors", changed))


def test_a_fused_flux_layer_is_told_from_its_blocks(tmp_path: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    up = np.kron(np.eye(3), np.ones((4, 2)))
    tensors = {
        f"{name}.lora_up.weight": up,
        f"{name}.lora_down.weight": np.ones((6, 4)),
        f"{name}.alpha": np.array(2.0),
    }
    (note,) = formats.read(saved(tmp_path / "x.safetensors", tensors)).notes
    assert note.code == "fused-blocks" and "rank 2" in note.text
    assert note.site == "transformer.double_blocks.0.img_attn.qkv"


def test_dora_moves_the_base_weight_to_its_magnitudes(tmp_path: Path) -> None:
    magnitude = np.arange(1.0, 6.0).reshape(5, 1)
    tensors = kohya() | {f"{NAME}.dora_scale": magnitude}
    adapter = formats.read(saved(tmp_path / "x.safetensors", tensors))
    update = adapter[SITE]
    assert (update.kind, adapter.provenance.kind) == ("dora", "dora")
    base = np.random.default_rng(5).standard_normal((5, 6))
    moved = base + update.delta_weight(np.float64, base=base)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), magnitude[:, 0], rtol=1e-12)
    formats.write(adapter.with_sites(dict(adapter)), tmp_path / "y.safetensors", format="kohya")
    again = safetensors.numpy.load_file(tmp_path / "y.safetensors")
    assert set(again) == set(tensors)
    np.testing.assert_array_equal(again[f"{NAME}.dora_scale"], magnitude)


def test_the_bias_beside_a_pair_is_not_scaled(tmp_path: Path) -> None:
    bias = np.arange(5.0)
    tensors = kohya(alpha=0.5) | {f"{NAME}.diff_b": bias}
    update = formats.read(saved(tmp_path / "x.safetensors", tensors))[SITE]
    assert update.scale == 0.25
    found = update.delta_bias(np.float64)
    np.testing.assert_array_equal(found, bias)


def test_other_adapters_are_written_with_kohya_names_and_keep_their_sites(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sites = {
        "unet.mid.to_q": LowRank(rng.standard_normal((4, 2)), rng.standard_normal((2, 3)), scale=0.3),
        "text_encoder.fc": LowRank(rng.standard_normal((4, 1)), rng.standard_normal((1, 3)), scale=0.0),
        "unet.conv": LowRank(
            rng.standard_normal((4, 2)), rng.standard_normal((2, 12)), scale=-1, layer="conv2d", kernel=(3, 2, 2)
        ),
        "layers.0.with_underscore": LowRank(rng.standard_normal((4, 1)), rng.standard_normal((1, 3))),
    }
    formats.write(Adapter(sites), tmp_path / "x.safetensors", format="kohya")
    again = formats.read(tmp_path / "x.safetensors")
    assert set(again) == set(sites) and not again.notes
    for site, update in sites.items():
        np.testing.assert_array_equal(again[site].delta_weight(np.float64), update.delta_weight(np.float64))
    names = {key.partition(".")[0] for key in again.original or {}}
    assert names == {"lora_unet_mid_to_q", "lora_te_fc", "lora_unet_conv", "lora_unet_layers_0_with_underscore"}


def test_the_first_text_encoder_of_larger_models_has_a_number(tmp_path: Path) -> None:
    one = LowRank(np.ones((2, 1)), np.ones((1, 2)))
    sites = {"text_encoder.fc": one, "text_encoder_2.fc": one, "transformer.single_blocks.0.linear1": one}
    formats.write(Adapter(sites), tmp_path / "x.safetensors", format="kohya")
    again = formats.read(tmp_path / "x.safetensors")
    assert set(again) == set(sites)
    assert {key.partition(".")[0] for key in again.original or {}} == {
        "lora_te1_fc",
        "lora_te2_fc",
        "lora_unet_single_blocks_0_linear1",
    }


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({NAME: "unet.another.layer"}),
        json.dumps({NAME: ["unet"]}),
        json.dumps({NAME: "lora_unet_x]"}),
        json.dumps([NAME]),
        "[" * 100_000,
        "{",
    ],
)
def test_listed_sites_are_taken_only_where_they_flatten_to_the_name(tmp_path: Path, text: str) -> None:
    path = saved(tmp_path / "x.safetensors", kohya(), {SITES_KEY: text})
    assert list(formats.read(path)) == [SITE]


def test_listed_sites_win_over_the_vocabulary(tmp_path: Path) -> None:
    odd = "unet.down.blocks_0.attentions.0.proj.in"
    path = saved(tmp_path / "x.safetensors", kohya(), {SITES_KEY: json.dumps({NAME: odd})})
    assert list(formats.read(path)) == [odd]


def test_names_of_no_known_layer_stay_and_are_noted(tmp_path: Path) -> None:
    adapter = formats.read(saved(tmp_path / "x.safetensors", kohya("lora_unet_x_y") | kohya()))
    assert set(adapter) == {"lora_unet_x_y", SITE}
    (note,) = adapter.notes
    assert (note.code, note.site) == ("flat-names", "lora_unet_x_y")


def test_two_names_for_one_site_both_stay(tmp_path: Path) -> None:
    one, two = "lora_te_text_projection", "lora_te1_text_projection"
    adapter = formats.read(saved(tmp_path / "x.safetensors", kohya(one) | kohya(two)))
    assert set(adapter) == {one, two}


def test_a_layer_of_two_models_is_that_of_the_model_that_the_file_is_for() -> None:
    shared = "lora_unet_double_blocks_0_img_attn_qkv"
    assert sites_of([shared], {})[shared] == "transformer.double_blocks.0.img_attn.qkv"
    flux = sites_of([shared, "lora_unet_double_blocks_0_img_mod_lin"], {})
    assert flux[shared] == "transformer.double_blocks.0.img_attn.qkv"
    hunyuan = sites_of([shared, "lora_unet_double_blocks_0_img_mod_linear"], {})
    assert hunyuan[shared] == "transformer.double_blocks.0.img_attn_qkv"


@pytest.mark.parametrize("family", [*DENOISERS, *TEXT_ENCODERS])
def test_un_flattening_is_undone_by_flattening(family: str) -> None:
    templates = TEXT_ENCODERS[family] if family in TEXT_ENCODERS else DENOISERS[family][0]
    paths = [path.replace("#", "12") for template in templates for path in expanded(template)]
    assert len(set(paths)) == len(paths) > 10
    flat = [path.replace(".", "_") for path in paths]
    assert len(set(flat)) == len(flat)
    for path, name in zip(paths, flat, strict=True):
        assert unflattened(name, family) == path
        assert unflattened(f"{name}_x", family) is None and unflattened(name[1:], family) is None


def test_no_two_layers_of_the_ldm_code_are_one_layer_of_diffusers() -> None:
    sides = [f"{side}_blocks.{number}" for side in ("input", "output") for number in range(12)] + ["middle_block"]
    tails = [f"{index}.{tail}" for index in range(3) for tail in ("in_layers.2", "proj_in", "op", "conv")]
    found = [path for side in sides for tail in tails if (path := diffusers_path(f"{side}.{tail}"))]
    up = [path for path in found if path.endswith("upsamplers.0.conv")]  # after attention, or where there is none
    assert len(up) == 2 * len(set(up)) == 8
    others = [path for path in found if path not in up]
    assert len(set(others)) == len(others) > 40


def test_what_kohya_has_no_place_for_is_refused(tmp_path: Path) -> None:
    one = LowRank(np.ones((2, 1)), np.ones((1, 2)))
    transposed = LowRank(np.ones((2, 1)), np.ones((1, 2)), is_transposed=True)
    biased = LowRank(np.ones((2, 1)), np.ones((1, 2)), bias=np.ones(2))
    for sites in ({"e": transposed}, {"a.b": one, "a_b": one}, {"q": biased}, {"experts.w[3]": one}, {}):
        with pytest.raises(AdapterError):
            formats.write(Adapter(sites), tmp_path / "x.safetensors", format="kohya")
    assert not list(tmp_path.iterdir())
