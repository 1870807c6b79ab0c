"""PEFT LoRA: scales, layers, variants, leftovers, damaged pairs, and what ``peft`` itself says of a written folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
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
        ({"rank_pattern": {"q": None, "v": -1}}, "rank_pattern of v"),
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


def test_a_convolution_in_groups_is_refused(peft_folder: Folder) -> None:
    tensors = {f"{P}c.lora_A.weight": np.ones((4, 6, 3, 3)), f"{P}c.lora_B.weight": np.ones((6, 2, 1, 1))}
    with pytest.raises(AdapterError, match="groups"):
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
        f"{P}q.lora_B.bias": np.ones(5, np.float32),
        "what.is.this": np.ones((), np.int64),
    }
    adapter = formats.read(peft_folder(lora_factors("q") | extra, {"modules_to_save": ["classifier", "classifier"]}))
    assert set(adapter.leftovers) == set(extra)
    assert {note.code for note in adapter.notes} == {"saved-modules", "saved-biases", "lora-bias", "unknown-keys"}


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
        ({"use_dora": True}, "DoRA"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "fused parameters"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"use_bdlora": {"nblocks": 2}}, "block-diagonal"),
        ({"peft_type": "VERA"}, "peft_type VERA is recognised, but not read"),
        ({"peft_type": "FINEGATES"}, "unsupported peft_type FINEGATES"),
        ({"peft_type": 7}, "unsupported peft_type 7"),
    ],
)
def test_variants_are_refused_by_name(peft_folder: Folder, config: dict[str, Any], said: str) -> None:
    with pytest.raises(AdapterError, match=said):
        formats.read(peft_folder(config=config))


def test_dora_is_refused_by_its_tensor_too(peft_folder: Folder, lora_factors: Factors) -> None:
    with pytest.raises(AdapterError, match="DoRA"):
        formats.read(peft_folder(lora_factors("q") | {f"{P}q.lora_magnitude_vector": np.ones(5, np.float32)}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora_B": None}, "has no partner: B is missing"),
        ({"lora_A": None}, "has no partner: A is missing"),
        ({"lora_A": np.zeros((0,), np.float32)}, "empty or flat"),
        ({"lora_A": np.zeros((2, 0), np.float32)}, "empty or flat"),
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


def test_an_unedited_adapter_is_written_back_letter_by_letter(
    peft_folder: Folder, lora_factors: Factors, tmp_path: Path
) -> None:
    tensors = lora_factors("q") | {"odd": np.ones((2, 2), ml_dtypes.float8_e4m3fn), "s": np.array(3, np.int64)}
    source = peft_folder(tensors, {"alpha": 1, "strange": ["ä"]}, metadata={"format": "pt", "who": "me"})
    adapter = formats.read(source)
    formats.write(adapter, tmp_path / "out")
    again = formats.read(tmp_path / "out")
    assert again.original is not None
    assert {key: (v.dtype, v.tobytes()) for key, v in again.original.items()} == {
        key: (v.dtype, v.tobytes()) for key, v in tensors.items()
    }
    assert again.provenance.metadata == {"format": "pt", "who": "me"}
    assert (tmp_path / "out/adapter_config.json").read_bytes() == (source / "adapter_config.json").read_bytes()


def mixed() -> Adapter:
    """Layers of all kinds with their own ranks and scales."""
    rng = np.random.default_rng(3)

    def low_rank(out: int, in_: int, rank: int, **options: Any) -> LowRank:
        B, A = rng.standard_normal((out, rank)), rng.standard_normal((rank, in_))
        return LowRank(B.astype(np.float32), A.astype(np.float32), **options)

    return Adapter(
        {
            "linear": low_rank(6, 4, 3, scale=0.7 / 3),
            "block.linear": low_rank(5, 6, 1, scale=-2.0),
            "conv": low_rank(4, 27, 2, scale=1 / 3, layer="conv2d", kernel=(3, 3, 3)),
            "embedding": low_rank(4, 10, 2, scale=1.7, layer="embedding", is_transposed=True),
        }
    )


def test_mixed_ranks_scales_and_layers_survive_writing(tmp_path: Path) -> None:
    adapter = mixed()
    formats.write(adapter, tmp_path / "out")
    again = formats.read(tmp_path / "out")
    assert set(again) == set(adapter)
    for site, update in adapter.items():
        assert (again[site].layer, again[site].base_shape) == (update.layer, update.base_shape)
        assert again[site].scale == update.scale
        np.testing.assert_array_equal(again[site].delta_weight(), update.delta_weight())


def test_peft_loads_what_is_written_and_computes_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    adapter = mixed()
    formats.write(adapter, tmp_path / "out")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 6)
            self.block = torch.nn.ModuleDict({"linear": torch.nn.Linear(6, 5)})
            self.conv = torch.nn.Conv2d(3, 4, 3)
            self.embedding = torch.nn.Embedding(10, 4)

    model = peft.PeftModel.from_pretrained(Net(), tmp_path / "out")
    modules = dict(model.base_model.model.named_modules())
    for site, update in adapter.items():
        theirs = modules[site].get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(theirs, update.delta_weight(), rtol=1e-5, atol=1e-6)


def test_what_peft_saves_is_read_as_it_computes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        use_rslora=True,
        target_modules=["0", "1", "2"],
        rank_pattern={"1": 2},
        alpha_pattern={"2": 7},
        init_lora_weights=False,
    )
    model = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Conv2d(3, 4, 3), torch.nn.Embedding(10, 4)), config
    )
    model.save_pretrained(tmp_path)
    adapter = formats.read(tmp_path)
    assert len(adapter) == 3
    for site, update in adapter.items():
        theirs = model.base_model.model[int(site)].get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(update.delta_weight(), theirs, rtol=1e-5, atol=1e-6)


def test_a_scale_that_no_alpha_reaches_moves_by_one_unit_at_most(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scales = rng.uniform(1e-3, 4, 300)
    sites = {f"s{i}": LowRank(np.ones((4, 3)), np.ones((3, 4)), scale=float(s)) for i, s in enumerate(scales)}
    formats.write(Adapter(sites), tmp_path / "out")
    again = formats.read(tmp_path / "out")
    read = np.array([again[site].scale for site in sites])
    assert np.all(np.abs(read - scales) <= np.spacing(scales))
    assert np.mean(read == scales) > 0.5


def test_rank_zero_is_written_as_a_zero_rank(tmp_path: Path) -> None:
    formats.write(Adapter({"q": LowRank(np.ones((3, 0)), np.ones((0, 2)))}), tmp_path / "out")
    again = formats.read(tmp_path / "out")
    assert again["q"].rank == 1 and again["q"].norm() == 0


def test_an_edit_drops_the_original_and_keeps_saved_modules(
    peft_folder: Folder, lora_factors: Factors, tmp_path: Path
) -> None:
    head = {f"{P}classifier.weight": np.full((2, 2), 7, np.float32)}
    source = peft_folder(
        lora_factors("q", "v") | head, {"modules_to_save": ["classifier"], "init_lora_weights": "pissa"}
    )
    adapter = formats.read(source)
    formats.write(adapter.with_sites({"q": adapter["q"]}), tmp_path / "out", dtype="bfloat16")
    again = formats.read(tmp_path / "out")
    assert list(again) == ["q"] and again["q"].dtype == "bfloat16"
    assert again.leftovers[f"{P}classifier.weight"].tolist() == [[7, 7], [7, 7]]
    assert not again.provenance.is_relative_to_base


def test_a_dtype_that_cannot_hold_the_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="too large"):
        formats.write(Adapter({"q": LowRank(np.full((2, 1), 1e6), np.ones((1, 2)))}), tmp_path / "o", dtype="float16")
    assert not (tmp_path / "o").exists()
