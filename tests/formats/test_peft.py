"""PEFT LoRA: scales, layers, variants, leftovers, damaged pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.errors import AdapterError

P = "base_model.model."
Folder = Callable[..., Path]
Factors = Callable[..., dict[str, Any]]


def test_a_folder_is_read_with_its_scale(peft_folder: Folder) -> None:
    adapter = formats.read(peft_folder(config={"base_model_name_or_path": "some/base"}, metadata={"format": "pt"}))
    assert list(adapter) == ["q", "v"]
    assert (adapter["q"].rank, adapter["q"].scale, adapter["q"].alpha) == (2, 2.0, 4.0)
    assert adapter["q"].shape == (5, 4)
    assert adapter.provenance.base_model == "some/base"
    assert adapter.provenance.metadata == {"format": "pt"}
    assert adapter.notes == ()


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 3}, 1.5),
        ({"lora_alpha": 4, "use_rslora": True}, 4 / math.sqrt(2)),
        ({"alpha_pattern": {"q": 8}}, 4.0),
        ({"r": 16, "rank_pattern": {"q": 2, "v": 2}}, 2.0),
        ({"r": 16, "rank_pattern": {r"(q|v)": 2}, "alpha_pattern": {r"^q$": 1}}, 0.5),
    ],
)
def test_the_scale_follows_the_configuration(peft_folder: Folder, config: dict[str, Any], scale: float) -> None:
    assert formats.read(peft_folder(config=config))["q"].scale == scale


def test_patterns_match_whole_path_segments(peft_folder: Folder, lora_factors: Factors) -> None:
    folder = peft_folder(lora_factors("a.q", "a.kq", "q.a"), {"alpha_pattern": {"q": 8}})
    assert {site: update.alpha for site, update in formats.read(folder).items()} == {"a.q": 8, "a.kq": 4, "q.a": 4}


@pytest.mark.parametrize("pattern", ["(a+)+$", r"(.*)*x", "a*b*c*d*e*", "x" * 600, "(", r"(a)\1"])
def test_a_pattern_that_could_match_for_ever_is_refused(peft_folder: Folder, pattern: str) -> None:
    with pytest.raises(AdapterError, match="pattern"):
        formats.read(peft_folder(config={"alpha_pattern": {pattern: 1}}))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"r": True}, "r"),
        ({"r": 2.0}, "r"),
        ({"r": 0}, "r"),
        ({"r": "2"}, "r"),
        ({"lora_alpha": "4"}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"rank_pattern": {"q": None, "v": -1}}, "v: rank_pattern"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(peft_folder: Folder, config: dict[str, Any], key: str) -> None:
    with pytest.raises(AdapterError) as caught:
        formats.read(peft_folder(config=config))
    assert caught.value.key == key


def test_a_missing_alpha_is_peft_s_default_and_said(peft_folder: Folder) -> None:
    adapter = formats.read(peft_folder(config={"lora_alpha": None}))
    assert adapter["q"].scale == 4.0
    assert [note.code for note in adapter.notes] == ["scale-assumed"]


def test_a_missing_configuration_is_said_loudly(peft_folder: Folder) -> None:
    adapter = formats.read(peft_folder(has_config=False))
    assert adapter["q"].scale == 1.0 and adapter["q"].alpha is None
    assert "config missing: scale unknown" in adapter.notes[0].text


def test_layers_other_than_linear(peft_folder: Folder) -> None:
    rng = np.random.default_rng(1)
    tensors = {
        f"{P}c1.lora_A.weight": rng.standard_normal((2, 3, 5)),
        f"{P}c1.lora_B.weight": rng.standard_normal((4, 2, 1)),
        f"{P}c2.lora_A.weight": rng.standard_normal((2, 3, 3, 2)),
        f"{P}c2.lora_B.weight": rng.standard_normal((4, 2, 1, 1)),
        f"{P}c3.lora_A.weight": rng.standard_normal((2, 3, 2, 2, 2)),
        f"{P}c3.lora_B.weight": rng.standard_normal((4, 2, 1, 1, 1)),
        f"{P}e.lora_embedding_A": rng.standard_normal((2, 7)),
        f"{P}e.lora_embedding_B": rng.standard_normal((4, 2)),
        f"{P}l.lora_A.weight": rng.standard_normal((2, 7)),
        f"{P}l.lora_B.weight": rng.standard_normal((4, 2)),
    }
    adapter = formats.read(peft_folder(tensors, {"fan_in_fan_out": True}))
    assert {site: (update.layer, update.base_shape) for site, update in adapter.items()} == {
        "c1": ("conv1d", (4, 3, 5)),
        "c2": ("conv2d", (4, 3, 3, 2)),
        "c3": ("conv3d", (4, 3, 2, 2, 2)),
        "e": ("embedding", (7, 4)),
        "l": ("linear", (7, 4)),
    }
    B, A = tensors[f"{P}c2.lora_B.weight"][:, :, 0, 0], tensors[f"{P}c2.lora_A.weight"]
    expected = 2.0 * np.einsum("or,rchw->ochw", B, A)
    np.testing.assert_allclose(adapter["c2"].delta_weight(np.float64), expected, rtol=1e-12)


def test_a_convolution_in_groups_sees_all_channels_in_blocks_and_is_noted(peft_folder: Folder, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    A, B = rng.standard_normal((4, 6, 3, 3)), rng.standard_normal((6, 2, 1, 1))
    adapter = formats.read(peft_folder({f"{P}c.lora_A.weight": A, f"{P}c.lora_B.weight": B}, {"r": 4}))
    update = adapter["c"]
    assert update.base_shape == (6, 6, 3, 3) and [note.code for note in adapter.notes] == ["grouped-convolution"]
    whole = np.zeros((6, 4))
    whole[:3, :2], whole[3:, 2:] = B[:3, :, 0, 0], B[3:, :, 0, 0]
    expected = np.einsum("or,rchw->ochw", whole, A)
    np.testing.assert_allclose(update.delta_weight(np.float64), expected, rtol=1e-12, atol=1e-13)
    formats.write(adapter.with_sites({"d": update}), tmp_path / "out")
    np.testing.assert_array_equal(formats.read(tmp_path / "out")["d"].stored["B"], B)


def test_a_convolution_in_unequal_groups_is_an_error(peft_folder: Folder) -> None:
    tensors = {f"{P}c.lora_A.weight": np.ones((4, 6, 3, 3)), f"{P}c.lora_B.weight": np.ones((5, 2, 1, 1))}
    with pytest.raises(AdapterError, match="equal blocks"):
        formats.read(peft_folder(tensors, {"r": 4}))


def test_an_adapter_name_in_the_keys_is_read_and_two_are_refused(peft_folder: Folder, lora_factors: Factors) -> None:
    named = {key.replace(".weight", ".default.weight"): value for key, value in lora_factors("q").items()}
    assert list(formats.read(peft_folder(named))) == ["q"]
    with pytest.raises(AdapterError, match="several adapters"):
        formats.read(peft_folder(named | lora_factors("v")))


def test_leftovers_are_kept_and_each_kind_is_noted(peft_folder: Folder, lora_factors: Factors) -> None:
    extra = {
        f"{P}classifier.weight": np.ones((2, 2), np.float32),
        f"{P}q.base_layer.bias": np.ones(5, np.float32),
        "what.is.this": np.ones((), np.int64),
    }
    adapter = formats.read(peft_folder(lora_factors("q") | extra, {"modules_to_save": ["classifier", "classifier"]}))
    assert set(adapter.leftovers) == set(extra)
    assert {note.code for note in adapter.notes} == {"saved-modules", "saved-biases", "unknown-keys"}


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq"])
def test_a_mutated_base_is_flagged(peft_folder: Folder, init: str) -> None:
    adapter = formats.read(peft_folder(config={"init_lora_weights": init}))
    assert not adapter.provenance.is_relative_to_base
    assert [note.code for note in adapter.notes] == ["mutated-base"]


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva", "mica", None])
def test_other_initialisations_are_not(peft_folder: Folder, init: object) -> None:
    assert formats.read(peft_folder(config={"init_lora_weights": init})).provenance.is_relative_to_base


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "the tensor magnitude is missing"),
        ({"kasa_config": {"beta": 1}}, "the tensor diag is missing"),
        ({"target_parameters": "q.weight"}, "must be a list of names"),
        ({"target_parameters": [1]}, "must be a list of names"),
        ({"use_bdlora": {"target_modules_bd_a": "q"}}, "must be a list of names"),
        ({"use_bdlora": {"target_modules_bd_a": ["q"], "nblocks": 0}}, "must be a positive integer"),
        ({"use_bdlora": {"target_modules_bd_a": ["q"], "nblocks": 3}}, "equal blocks"),
        ({"peft_type": "XLORA"}, "peft_type: XLORA is recognised, but not read"),
        ({"peft_type": "FINEGATES"}, r"unsupported peft_type FINEGATES \(expected one of LORA, .*VERA"),
        ({"peft_type": 7}, "unsupported peft_type 7"),
    ],
)
def test_variants_that_do_not_fit_are_refused_by_name(peft_folder: Folder, config: dict[str, Any], said: str) -> None:
    with pytest.raises(AdapterError, match=said):
        formats.read(peft_folder(config=config))


def test_dora_is_told_by_its_tensor_too(peft_folder: Folder, lora_factors: Factors) -> None:
    for ending in ("", ".weight", ".default", ".default.weight"):
        extra = {f"{P}q.lora_magnitude_vector{ending}": np.ones(5, np.float32)}
        update = formats.read(peft_folder(lora_factors("q") | extra))["q"]
        assert update.kind == "dora" and update.needs == "base weight"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"x.lora_B.bias": 5}, "has no factors beside it"),
        ({"x.lora_magnitude_vector": 5}, "has no factors beside it"),
        ({"q.lora_B.bias": 4}, "the bias does not fit"),
        ({"q.lora_B.bias": 5, "q.lora_magnitude_vector": 5}, "a bias where PEFT has none"),
        ({"q.lora_diag": 2, "q.lora_magnitude_vector": 5}, "both DoRA and KaSA"),
        ({"q.lora_diag": 3}, "another shape"),
        ({"q.lora_magnitude_vector": 4}, "fits neither axis"),
        ({"q.lora_magnitude_vector": 5, "q.lora_magnitude_vector.weight": 5}, "two tensors are the magnitude"),
    ],
)
def test_extra_tensors_that_do_not_fit_are_errors(
    peft_folder: Folder, lora_factors: Factors, extra: dict[str, int], said: str
) -> None:
    tensors = {P + key: np.ones(size, np.float32) for key, size in extra.items()}
    with pytest.raises(AdapterError, match=said):
        formats.read(peft_folder(lora_factors("q") | tensors))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora_B": None}, "has no partner: B is missing"),
        ({"lora_A": None}, "has no partner: A is missing"),
        ({"lora_A": np.zeros((0,), np.float32)}, "is empty or"),
        ({"lora_A": np.zeros((2, 0), np.float32)}, "is empty or"),
        ({"lora_B": np.zeros((5, 3), np.float32)}, "do not make a product"),
        ({"lora_B": np.zeros((5, 2, 2), np.float32)}, "do not make a product"),
        ({"lora_A": np.zeros((2, 4), np.int32)}, "floating-point"),
        ({"lora_A": np.zeros((3, 4), np.float32), "lora_B": np.zeros((5, 3), np.float32)}, "configuration states"),
    ],
)
def test_a_broken_pair_names_its_site(
    peft_folder: Folder, lora_factors: Factors, change: dict[str, Any], said: str
) -> None:
    tensors = lora_factors("layer.q", "layer.v")
    for half, value in change.items():
        key = f"{P}layer.v.{half}.weight"
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    folder = peft_folder(tensors)
    with pytest.raises(AdapterError, match=said) as caught:
        formats.read(folder)
    assert caught.value.key == "layer.v"
    assert caught.value.file == str(folder / "adapter_model.safetensors")


def test_a_non_finite_value_names_its_tensor(peft_folder: Folder, lora_factors: Factors) -> None:
    tensors = lora_factors("q", "v")
    tensors[f"{P}v.lora_A.weight"][0, 0] = np.nan
    with pytest.raises(AdapterError, match=r"non-finite value in base_model.model.v.lora_A.weight"):
        formats.read(peft_folder(tensors)).norm()


def test_a_configuration_without_tensors_is_an_error(peft_folder: Folder) -> None:
    with pytest.raises(AdapterError, match="no LoRA tensors"):
        formats.read(peft_folder({"x": np.ones(3, np.float32)}))
