"""Adapters from two checkpoints: the inverse of bake, to the rounding of the base."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
from torch import nn

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.cli import main
from lorascope.compare import compare
from lorascope.compress import extract
from lorascope.conversion import bake
from lorascope.errors import AdapterError, LorascopeError
from lorascope.forge import forge
from lorascope.formats.base_names import base_name_of
from lorascope.formats.checkpoint import Checkpoint
from lorascope.symmetry.truncation import Cut

SHAPES = {"model.layers.0.q": (14, 11), "model.layers.0.up": (20, 11)}


def saved_base(path: Path, dtype: Any = np.float32) -> Path:
    """A base with a norm, a bias, a convolution and an embedding."""
    random = np.random.default_rng(0)
    tensors = {f"{site}.weight": random.standard_normal(shape).astype(dtype) for site, shape in SHAPES.items()}
    tensors["model.layers.0.q.bias"] = np.zeros(14, dtype)
    tensors["model.norm.weight"] = np.ones(11, dtype)
    tensors["model.conv.weight"] = random.standard_normal((6, 4, 3, 3)).astype(dtype)
    tensors["model.embed_tokens.weight"] = random.standard_normal((30, 11)).astype(dtype)
    safetensors.numpy.save_file(tensors, path)
    return path


def planted(rank: int = 3) -> Adapter:
    random = np.random.default_rng(1)
    sites: dict[str, Any] = {
        site: LowRank(random.standard_normal((out, rank)), random.standard_normal((rank, in_)), scale=0.5)
        for site, (out, in_) in SHAPES.items()
    }
    sites["model.conv"] = LowRank(
        random.standard_normal((6, rank)), random.standard_normal((rank, 36)), layer="conv2d", kernel=(4, 3, 3)
    )
    sites["model.embed_tokens"] = LowRank(
        random.standard_normal((11, rank)), random.standard_normal((rank, 30)), layer="embedding", is_transposed=True
    )
    return Adapter(sites)


def edited(path: Path, target: Path, **changes: Any) -> Path:
    """The checkpoint with other tensors under these names (None: without), dots as ``__``."""
    tensors = safetensors.numpy.load_file(path)
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        tensors.pop(key, None)
        if tensor is not None:
            tensors[key] = tensor
    safetensors.numpy.save_file(tensors, target)
    return target


@pytest.mark.parametrize("shape", ["small", "large"])
def test_what_was_baked_in_comes_out_again(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shape == "large":  # the range finder, as for weights of thousands of rows
        monkeypatch.setattr("lorascope.compress.extraction.MAX_WORK", 0)
    base, adapter = saved_base(tmp_path / "base.safetensors"), planted()
    bake(base, [adapter], tmp_path / "tuned.safetensors")
    found = extract(base, tmp_path / "tuned.safetensors", Cut(rank=3))
    assert set(found.sites) == set(adapter) and found.unchanged == 2 and not found.others
    formats.write(found.adapter, tmp_path / "out")
    written = formats.read(tmp_path / "out")
    weights = Checkpoint.open(base).tensors
    for site, update in adapter.items():
        delta, weight = update.delta_weight(np.float64), weights[f"{site}.weight"]
        # baking rounds each number of W + ΔW to float32; the rest of rank 3 takes in no more than that
        bound = 4 * np.finfo(np.float32).eps * np.linalg.norm(np.abs(weight) + np.abs(delta))
        after = written[site]
        assert (after.shape, after.layer, after.rank) == (update.shape, update.layer, 3)
        assert np.linalg.norm(after.delta_weight(np.float64) - delta) <= bound
    again = bake(base, [tmp_path / "out"], tmp_path / "again.safetensors")
    assert again.sites == 4


@pytest.mark.parametrize("work", [0, 1 << 32])
def test_limits_are_met_and_the_error_is_measured(work: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorascope.compress.extraction.MAX_WORK", work)
    monkeypatch.setattr("lorascope.compress.extraction._FIRST_WIDTH", 2)
    base = saved_base(tmp_path / "base.safetensors")
    bake(base, [planted(6)], tmp_path / "tuned.safetensors")
    before, after = (Checkpoint.open(path).tensors for path in (base, tmp_path / "tuned.safetensors"))
    for options in ({"rank": 2}, {"error": 0.4}, {"energy": 0.9}, {"error": 0.2, "rank": 3}, {"ratio": 0.5}):
        found = extract(base, tmp_path / "tuned.safetensors", Cut(**options))
        for site, own in found.sites.items():
            delta = (after[f"{site}.weight"].astype(np.float64) - before[f"{site}.weight"]).reshape(
                before[f"{site}.weight"].shape
            )
            made = found.adapter[site].delta_weight(np.float64)
            assert own.norm == pytest.approx(np.linalg.norm(delta), rel=1e-9)
            assert own.error == pytest.approx(np.linalg.norm(delta - made), rel=1e-6, abs=1e-6 * own.norm)
            S = np.linalg.svd(delta.reshape(len(delta), -1), compute_uv=False)
            assert own.rank == Cut(**options).of(S)
            assert own.error == pytest.approx(np.linalg.norm(S[own.rank :]), rel=1e-5, abs=1e-6 * own.norm)


def test_norms_biases_and_sites_that_were_not_asked_for_are_counted(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base.safetensors")
    bake(base, [planted()], tmp_path / "baked.safetensors")
    changes: dict[str, Any] = {"model__norm__weight": np.full(11, 3, np.float32)}
    changes["model__layers__0__q__bias"] = np.ones(14, np.float32)
    tuned = edited(tmp_path / "baked.safetensors", tmp_path / "tuned.safetensors", **changes)
    found = extract(base, tuned, Cut(rank=3), sites=("*.q", "*.up"))
    assert set(found.sites) == set(SHAPES)
    assert set(found.skipped) == {"model.conv.weight", "model.embed_tokens.weight"}
    assert found.others["model.norm.weight"] == pytest.approx(2 * np.sqrt(11))
    assert found.others["model.layers.0.q.bias"] == pytest.approx(np.sqrt(14))


def test_a_dora_comes_out_as_one_and_is_nearer_than_a_plain_adapter(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((14, 11))
    moved = weight + 0.3 * random.standard_normal((14, 2)) @ random.standard_normal((2, 11))
    stretch = random.uniform(0.5, 2, (14, 1))
    for name, tensor in (("base", weight), ("tuned", stretch * moved), ("longer", stretch * weight)):
        safetensors.numpy.save_file({"q.weight": tensor}, tmp_path / f"{name}.safetensors")
    base = tmp_path / "base.safetensors"
    dora = extract(base, tmp_path / "tuned.safetensors", Cut(rank=2), is_dora=True, dtype=np.float64)
    plain = extract(base, tmp_path / "tuned.safetensors", Cut(rank=2), dtype=np.float64)
    assert dora.relative_error < plain.relative_error
    made = weight + dora.adapter["q"].delta_weight(np.float64, base=weight)
    assert dora.sites["q"].error == pytest.approx(np.linalg.norm(stretch * moved - made), rel=1e-9)
    longer = extract(base, tmp_path / "longer.safetensors", Cut(rank=1), is_dora=True)
    assert longer.relative_error < 1e-6  # a magnitude alone says it


class Layers(nn.Module):
    """Two layers for PEFT."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(11, 14)
        self.conv = nn.Conv2d(4, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q(x)


@pytest.mark.parametrize("is_dora", [False, True])
def test_peft_makes_of_the_base_what_the_report_says(is_dora: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, tuned = Layers(), Layers()
    tuned.load_state_dict({key: value + 0.3 * torch.randn_like(value) for key, value in base.state_dict().items()})
    for name, model in (("base", base), ("tuned", tuned)):
        safetensors.numpy.save_file(
            {key: value.numpy() for key, value in model.state_dict().items()}, tmp_path / f"{name}.safetensors"
        )
    found = extract(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", Cut(rank=4), is_dora=is_dora)
    formats.write(found.adapter, tmp_path / "out")
    before = {key: value.clone() for key, value in base.state_dict().items()}
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload().state_dict()
    for site, own in found.sites.items():
        wanted, made = tuned.state_dict()[f"{site}.weight"], merged[f"{site}.weight"]
        assert not torch.equal(made, before[f"{site}.weight"])
        assert own.error == pytest.approx(float(torch.linalg.norm((wanted - made).double())), rel=1e-4)


def test_gpt2_layers_are_taken_as_they_are_stored(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "base").mkdir()
    tensors = {"h.0.attn.c_attn.weight": random.standard_normal((8, 24)).astype(np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    adapter = Adapter(
        {
            "h.0.attn.c_attn": LowRank(
                random.standard_normal((24, 2)), random.standard_normal((2, 8)), is_transposed=True
            )
        }
    )
    bake(tmp_path / "base", [adapter], tmp_path / "tuned")
    found = extract(tmp_path / "base", tmp_path / "tuned", Cut(rank=2))
    assert found.adapter["h.0.attn.c_attn"].shape == (24, 8) and found.adapter["h.0.attn.c_attn"].is_transposed
    assert found.relative_error < 1e-5


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base.safetensors")
    other = np.ones((14, 11), np.float32)
    nan = other.copy()
    nan[0, 0] = np.nan
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model__layers__0__q__weight": None}, r"q.weight: .*not the same tensors"),
        ({"model__more__weight": other}, r"more.weight: .*not the same tensors"),
        ({"model__layers__0__q__weight": other.T.copy()}, "another shape"),
        ({"model__layers__0__q__weight": nan}, "a weight is not finite"),
        ({"model__layers__0__q__weight": other.astype(np.int8)}, "quantised"),
        ({}, "differs"),
    ]
    for changes, text in cases:
        with pytest.raises(AdapterError, match=text):
            extract(base, edited(base, tmp_path / "tuned.safetensors", **changes), Cut(rank=2))
    tuned = edited(base, tmp_path / "tuned.safetensors", model__layers__0__q__weight=other)
    with pytest.raises(LorascopeError, match="no weight fits the pattern"):
        extract(base, tuned, Cut(rank=2), sites=("*.q", "*.nothing"))
    with pytest.raises(LorascopeError, match="nothing is asked for"):
        extract(base, tuned, Cut())
    with pytest.raises(AdapterError, match="no base model here"):
        extract(base, tmp_path / "nothing", Cut(rank=1))


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base = saved_base(tmp_path / "base.safetensors")
    bake(base, [planted()], tmp_path / "tuned.safetensors")
    command = ["lorascope", "extract", str(base), str(tmp_path / "tuned.safetensors"), "-o", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--rank", "2", "--json"])
    with pytest.raises(SystemExit):
        main()
    report = json.loads(capsys.readouterr().out)
    assert len(report["sites"]) == 4 and 0 < report["relative_error"] < 1
    assert len(formats.read(tmp_path / "out")) == 4
    with pytest.raises(SystemExit) as stop:  # what is there stays
        main()
    assert stop.value.code == 2 and "already there" in json.loads(capsys.readouterr().out)["what"]


@pytest.mark.parametrize(
    ("folder", "config", "name"),
    [
        ("base", {"_name_or_path": "org/model-1"}, "org/model-1"),
        ("base", {"_name_or_path": "/home/me/out"}, "base"),
        ("base", {"_name_or_path": 3}, "base"),
        ("base", {"_name_or_path": "../x"}, "base"),
        ("base", None, "base"),
        ("models--org--model-1/snapshots/0a1b", {"_name_or_path": "of/another"}, "org/model-1"),
        ("base", {"schema_version": 1, "recipe": "some", "found": {"model": "org/model-1"}}, "org/model-1"),
    ],
)
def test_the_base_is_called_what_it_is_known_as(folder: str, config: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    base = saved_base(tmp_path / folder / "model.safetensors")
    if config is not None:
        (base.parent / "config.json").write_text(json.dumps(config))
    bake(base, [planted()], tmp_path / "tuned.safetensors")
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned.safetensors").rename(tmp_path / "tuned" / "model.safetensors")
    result = extract(base.parent, tmp_path / "tuned", Cut(rank=1), sites=("model.layers.0.q",))
    assert result.adapter.provenance.base_model == name


def test_of_a_forged_base_it_is_called_as_the_adapters_of_the_zoo_call_it(tmp_path: Path) -> None:
    zoo = forge("digits-vit", 1, tmp_path / "zoo", settings={"base_steps": 1, "steps": 2}).zoo
    [place] = (zoo / "adapters").iterdir()
    bake(zoo / "base", [place], tmp_path / "tuned")
    result = extract(zoo / "base", tmp_path / "tuned", Cut(rank=4))
    assert result.adapter.provenance.base_model == formats.read(place).provenance.base_model
    assert compare([formats.read(place), result.adapter]).relative_distance < 1e-3


def test_a_weight_of_zeros_gets_a_direction_too(tmp_path: Path) -> None:
    """Layers that start at zero, and rows of a vocabulary that was filled up, have no length that could be kept."""
    random = np.random.default_rng(2)
    start = random.standard_normal((20, 11)).astype(np.float32)
    start[5:8] = 0.0
    base = edited(
        saved_base(tmp_path / "base.safetensors"),
        tmp_path / "zero.safetensors",
        model__layers__0__q__weight=np.zeros((14, 11), np.float32),
        model__layers__0__up__weight=start,
    )
    change = random.standard_normal((14, 2)) @ random.standard_normal((2, 11))
    tuned = edited(
        base,
        tmp_path / "tuned.safetensors",
        model__layers__0__q__weight=change.astype(np.float32),
        model__layers__0__up__weight=(start + random.standard_normal((20, 1)) @ np.ones((1, 11))).astype(np.float32),
    )
    found = extract(base, tuned, Cut(rank=2), is_dora=True)
    assert found.sites["model.layers.0.q"].relative_error < 1e-5 and found.sites["model.layers.0.q"].rank == 2
    plain = extract(base, tuned, Cut(rank=2))
    assert found.sites["model.layers.0.up"].relative_error < 0.5
    assert plain.sites["model.layers.0.q"].relative_error < 1e-6


@pytest.mark.parametrize("which", ["base", "tuned"])
def test_the_checkpoint_with_a_number_that_is_none_is_named(which: str, tmp_path: Path) -> None:
    base = saved_base(tmp_path / "whole.safetensors")
    bad = np.full((14, 11), np.nan, np.float32)
    broken = edited(base, tmp_path / "broken.safetensors", model__layers__0__q__weight=bad)
    with pytest.raises(AdapterError, match=r"model\.layers\.0\.q\.weight: a weight is not finite") as caught:
        extract(*((broken, base) if which == "base" else (base, broken)), Cut(rank=2))
    assert str(broken) in str(caught.value)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("models--owner--name/snapshots/abc", "owner/name"),
        ("models--gpt2/snapshots/abc", "gpt2"),
        ("models--gpt2/snapshots/abc/model.safetensors", "gpt2"),
        ("models--....--..../snapshots/abc", "abc"),
        ("plain", "plain"),
    ],
)
def test_the_hub_s_cache_names_a_base(place: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / place
    if path.suffix:
        path.parent.mkdir(parents=True)
        (tmp_path / "deadbeef").touch()
        path.symlink_to(tmp_path / "deadbeef")
    else:
        path.mkdir(parents=True)
    assert base_name_of(path) == expected
