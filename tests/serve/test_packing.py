"""Files for multi-adapter servers: the same ΔW, one rank, equal sites."""

from __future__ import annotations

import json
import sys
import warnings
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
from lorascope.compress import compress
from lorascope.errors import AdapterError, LorascopeError
from lorascope.serve import serve_pack

SHAPES = {"layers.0.q": (14, 11), "layers.0.k": (12, 14)}


def adapter(seed: int, rank: int, sites: Any = tuple(SHAPES), **options: Any) -> Adapter:
    random = np.random.default_rng(seed)
    return Adapter(
        {
            site: LowRank(
                random.standard_normal((SHAPES[site][0], rank)),
                random.standard_normal((rank, SHAPES[site][1])),
                scale=0.5 + seed,
                **options,
            )
            for site in sites
        }
    )


def dense(one: Adapter, site: str) -> np.ndarray:
    return one[site].delta_weight(np.float64) if site in one else np.zeros(SHAPES[site])


def given() -> list[Adapter]:
    return [adapter(0, 2), adapter(1, 10), adapter(2, 3, ["layers.0.q"])]


def test_stacks_hold_every_adapter_at_its_place(tmp_path: Path) -> None:
    served = serve_pack(given(), tmp_path / "out", list("abc"), form="stacks", dtype=np.float64)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert [group["rank"] for group in index["groups"]] == [8, 16] and index["peft"] is None
    assert [(one.rank, one.place) for one in served.adapters] == [(8, 0), (16, 0), (8, 1)]
    stacks = {g["rank"]: safetensors.numpy.load_file(tmp_path / "out" / g["file"]) for g in index["groups"]}
    for one, own in zip(given(), index["adapters"], strict=True):
        for site, shape in SHAPES.items():
            B, A = stacks[own["rank"]][f"{site}.B"][own["place"]], stacks[own["rank"]][f"{site}.A"][own["place"]]
            assert B.shape == (shape[0], own["rank"]) and A.shape == (own["rank"], shape[1])
            np.testing.assert_allclose(B @ A, dense(one, site), atol=1e-12 * np.abs(dense(one, site)).max() + 1e-15)
        assert own["relative_error"] < 1e-12


def test_layers_that_differ_in_what_a_framework_puts_in_front_are_one(tmp_path: Path) -> None:
    one = adapter(1, 4)
    other = Adapter({f"base_model.{site}": update for site, update in adapter(2, 4).items()})
    served = serve_pack([one, other], tmp_path / "out", ["a", "b"], form="stacks")
    assert list(served.sites) == list(one)
    packed = compress([one, other], ["a", "b"], method="alone").pack
    assert [site.name for site in packed.sites] == list(one) and all(packed.members[1].ranks)


def test_larger_ranks_are_cut_and_the_error_is_that_of_the_files(tmp_path: Path) -> None:
    served = serve_pack(given(), tmp_path / "out", list("abc"), max_rank=4, dtype=np.float16)
    assert {own.rank for own in served.adapters} == {4} and served.peft_rank == 4
    assert json.loads((tmp_path / "out" / "index.json").read_text())["dtype"] == served.dtype == "float16"
    for one, own in zip(given(), served.adapters, strict=True):
        after = formats.read(tmp_path / "out" / "peft" / own.name)
        assert set(after) == set(SHAPES) and {update.rank for update in after.values()} == {4}
        error = np.linalg.norm([np.linalg.norm(dense(one, site) - dense(after, site)) for site in SHAPES])
        norm = np.linalg.norm([np.linalg.norm(dense(one, site)) for site in SHAPES])
        assert own.relative_error == pytest.approx(error / norm, rel=1e-6)
    assert served.adapters[1].relative_error > 0.1 > served.adapters[0].relative_error


class Layers(nn.Module):
    """A model with these sites, and another layer of the same name that no adapter changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(11, 14), "k": nn.Linear(14, 12)}) for _ in range(2))


def test_the_folders_are_what_vllm_and_sglang_ask_for_and_peft_loads_them(tmp_path: Path) -> None:
    serve_pack(given(), tmp_path / "out", list("abc"), form="peft", dtype=np.float32)
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["index.json", "peft"]
    configs = [json.loads((tmp_path / "out" / "peft" / name / "adapter_config.json").read_text()) for name in "abc"]
    for config in configs:
        assert (config["r"], config["lora_alpha"]) == (16, 16)
        assert not config["rank_pattern"] and not config["alpha_pattern"] and not config["use_dora"]
        assert config["bias"] == "none" and not config.get("modules_to_save") and not config["use_rslora"]
        assert config["target_modules"] == ["k", "q"]
    keys = [set(safetensors.numpy.load_file(tmp_path / f"out/peft/{name}/adapter_model.safetensors")) for name in "abc"]
    assert keys[0] == keys[1] == keys[2]
    model = Layers()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the layer that the adapter does not have, which PEFT starts at zero
        merged = peft.PeftModel.from_pretrained(model, tmp_path / "out/peft/b").merge_and_unload().state_dict()
    for site in SHAPES:
        found = (merged[f"{site}.weight"] - before[f"{site}.weight"]).double().numpy()
        assert np.linalg.norm(found - dense(given()[1], site)) <= 1e-5 * np.linalg.norm(dense(given()[1], site))
    assert torch.equal(merged["layers.1.q.weight"], before["layers.1.q.weight"])


def test_what_servers_have_no_place_for_is_refused(tmp_path: Path) -> None:
    biased = Adapter({"layers.0.q": LowRank(np.ones((14, 1)), np.ones((1, 11)), bias=np.ones(14))})
    headed = Adapter(adapter(0, 2).sites, leftovers={"head.weight": np.ones(2)})
    numbered = Adapter({site: adapter(0, 2)["layers.0.q"] for site in ("unet:0", "unet:1", "unet:2")})
    for one, what in ((biased, "servers have no place"), (headed, "servers have no place"), (numbered, "no model has")):
        with pytest.raises(AdapterError, match=rf"(?s)b: {what} .*--allow-loss"):
            serve_pack([adapter(0, 2), one], tmp_path / "out", ["a", "b"])
        served = serve_pack([one], tmp_path / f"out{len(one)}", is_loss_allowed=True)
        assert len(served.left_out) == 1
    other = Adapter({"layers.0.q": LowRank(np.ones((3, 1)), np.ones((1, 3)))})
    with pytest.raises(AdapterError, match="not of one base"):
        serve_pack([adapter(0, 2), other], tmp_path / "out")
    for options in ({"max_rank": 0}, {"form": "other"}):
        with pytest.raises(LorascopeError):
            serve_pack(given(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("kept")
    with pytest.raises(LorascopeError, match="already there"):
        serve_pack(given(), tmp_path / "out")


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, one in zip("abc", given(), strict=True):
        formats.write(one, tmp_path / "many" / name)
    arguments = ["serve-pack", tmp_path / "many", "-o", tmp_path / "out", "--max-rank", 8, "--json"]
    monkeypatch.setattr(sys, "argv", ["lorascope", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    report = json.loads(capsys.readouterr().out)
    assert not stop.value.code and [one["name"] for one in report["adapters"]] == ["a", "b", "c"]
    assert report["relative_error"] == max(one["relative_error"] for one in report["adapters"])


def test_the_rank_that_vllm_needs_is_one_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    formats.write(adapter(0, 30), tmp_path / "many" / "a")
    arguments = ["serve-pack", tmp_path / "many", "-o", tmp_path / "out", "--max-rank", 9]
    monkeypatch.setattr(sys, "argv", ["lorascope", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    said = capsys.readouterr().out
    assert "of rank 9: vLLM needs --max-lora-rank 16 or more" in said and "1 adapter, 2 sites in float16" in said
