"""What a configuration promises and the file does not hold, with and without the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.formats.checkpoint import Checkpoint
from lorascope.scan import verify

RNG = np.random.default_rng(0)


def written(folder: Path, *sites: str, saved: tuple[str, ...] = (), **fields: Any) -> Path:
    def factors() -> LowRank:
        return LowRank(RNG.standard_normal((6, 2)).astype(np.float32), RNG.standard_normal((2, 5)).astype(np.float32))

    formats.write(Adapter({site: factors() for site in sites}), folder / "adapter")
    config = folder / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    weights = folder / "adapter" / "adapter_model.safetensors"
    extra = {f"base_model.model.{name}": np.ones(3, np.float32) for name in saved}
    safetensors.numpy.save_file(safetensors.numpy.load_file(weights) | extra, weights)
    return folder / "adapter"


def found(adapter: Path, base: Checkpoint | None = None) -> list[tuple[str, str]]:
    codes = ("targets-missing", "layers-missing", "saved-modules-missing")
    return [(one.code, one.severity) for one in verify(adapter, base=base) if one.code in codes]


SITES = ("model.layers.0.q_proj", "model.layers.0.v_proj")


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj"],
        ["layers.0.q_proj", "model.layers.0.v_proj"],
        "all-linear",
        r".*\.(q|v)_proj",
        None,
        ["q_proj"],
    ],
)
def test_kept_promises_are_not_found(tmp_path: Path, targets: Any) -> None:
    assert found(written(tmp_path, *SITES, target_modules=targets)) == []


def test_a_listed_name_without_a_site_is_found(tmp_path: Path) -> None:
    adapter = written(tmp_path, *SITES, target_modules=["q_proj", "k_proj", "proj", "v_proj"])
    (finding,) = verify(adapter)
    assert (finding.code, finding.severity) == ("targets-missing", "warning")
    assert "k_proj, proj," in finding.text and "q_proj" not in finding.text.replace("k_proj", "")


def test_a_pattern_that_no_site_matches_is_found(tmp_path: Path) -> None:
    assert found(written(tmp_path, *SITES, target_modules=r".*\.mlp\..*")) == [("targets-missing", "warning")]
    hostile = written(tmp_path / "hostile", *SITES, target_modules="(.*)*x")
    assert found(hostile) == []  # not judged


def test_a_list_for_several_models_is_no_warning(tmp_path: Path) -> None:
    gpt2 = "transformer.h.0.attn.c_attn"
    assert found(written(tmp_path, gpt2, target_modules=["c_attn", "q_proj", "v_proj"])) == [
        ("targets-missing", "note")
    ]
    adapter = written(tmp_path / "lost", gpt2, target_modules=["c_attn", "q_proj", "down_proj"])
    assert found(adapter) == [("targets-missing", "warning")]


def test_names_that_the_configuration_takes_away_again_are_not_missing(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"target_modules": ["q_proj", "v_proj", "k_proj"], "exclude_modules": ["layers.1.k_proj"]}
    assert found(written(tmp_path / "list", *SITES, **fields)) == []
    fields["exclude_modules"] = ".*k_proj"
    assert found(written(tmp_path / "pattern", *SITES, **fields)) == []


def test_saved_modules_are_looked_for_as_peft_matches_them(tmp_path: Path) -> None:
    saved = ("classifier.dense.weight", "model.lm_head.weight")
    adapter = written(tmp_path, *SITES, saved=saved, modules_to_save=["classifier", "head", "classifier"])
    assert found(adapter) == []
    adapter = written(tmp_path / "other", *SITES, saved=("score.weight",), modules_to_save=["classifier", "score"])
    assert found(adapter) == [("saved-modules-missing", "note")]
    adapter = written(tmp_path / "none", *SITES, modules_to_save=["classifier", "score"])
    assert found(adapter) == [("saved-modules-missing", "warning")]


def test_the_base_tells_lost_modules_from_those_it_never_had(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    names = (*SITES, "model.layers.0.k_proj", "lm_head")
    safetensors.numpy.save_file(
        {f"{name}.weight": np.zeros((6, 5), np.float32) for name in names}, folder / "model.safetensors"
    )
    base = Checkpoint.open(folder)
    lost = written(tmp_path / "a", *SITES, target_modules=["q_proj", "k_proj", "W_pack"], modules_to_save=["lm_head"])
    assert found(lost, base) == [("targets-missing", "error"), ("saved-modules-missing", "error")]
    (finding, _) = verify(lost, base=base)
    assert "k_proj" in finding.text and "W_pack" not in finding.text
    never = written(tmp_path / "b", *SITES, target_modules=["q_proj", "W_pack"], modules_to_save=["score"])
    assert found(never, base) == [("targets-missing", "note"), ("saved-modules-missing", "note")]
    chosen = written(tmp_path / "c", *SITES, target_modules=["q_proj", "k_proj"], layers_to_transform=[0])
    assert found(chosen, base) == [("targets-missing", "warning")]


def test_layers_that_the_configuration_names_and_the_file_has_not(tmp_path: Path) -> None:
    sites = ("model.layers.0.q_proj", "model.layers.1.q_proj")
    adapter = written(tmp_path, *sites, layers_to_transform=[0, 1, 2, 3], target_modules=["q_proj"])
    assert found(adapter) == [("layers-missing", "warning")]
    for count, severity in ((4, "error"), (3, "error"), (2, "note")):
        tensors = {f"model.layers.{layer}.q_proj.weight": np.zeros((6, 5), np.float32) for layer in range(count)}
        safetensors.numpy.save_file(tensors, tmp_path / f"{count}.safetensors")
        base = Checkpoint.open(tmp_path / f"{count}.safetensors")
        assert found(adapter, base) == [("layers-missing", severity)]
    for listed in ([0, 1], 1, None, [True], ["2"]):
        (tmp_path / str(listed)).mkdir()
        sound = written(tmp_path / str(listed), *sites, layers_to_transform=listed, target_modules=["q_proj"])
        assert found(sound) == []
