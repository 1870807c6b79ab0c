"""Resizing: optimal, invariant, its error the error of what is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank, Note
from lorascope.cli import main
from lorascope.compress import compress, resize
from lorascope.errors import AdapterError, LorascopeError
from lorascope.symmetry import gauged, random_gauge
from lorascope.symmetry.truncation import Cut

SHAPES = {"layers.0.q": (12, 9), "layers.0.k": (7, 12), "layers.1.q": (12, 9)}


def planted(rank: int = 5, dtype: Any = np.float64) -> Adapter:
    """An adapter with scales that are not 1."""
    random = np.random.default_rng(3)
    return Adapter(
        {
            site: LowRank(
                (random.standard_normal((out, rank)) * np.linspace(1, 3, rank)).astype(dtype),
                random.standard_normal((rank, in_)).astype(dtype),
                scale=0.5 + number,
            )
            for number, (site, (out, in_)) in enumerate(SHAPES.items())
        }
    )


def dense_best(delta: np.ndarray, rank: int) -> float:
    """The error of the best matrix of that rank."""
    return float(np.sqrt(np.sum(np.linalg.svd(delta, compute_uv=False)[rank:] ** 2)))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_each_site_is_the_best_of_its_rank_and_the_error_is_that_of_what_is_written(dtype: str, tmp_path: Path) -> None:
    adapter = planted()
    small = resize(adapter, Cut(rank=2), dtype=dtype)
    formats.write(small.adapter, tmp_path / "out")
    written = formats.read(tmp_path / "out")
    for site, update in adapter.items():
        delta = update.delta_weight(np.float64)
        error = np.linalg.norm(written[site].delta_weight(np.float64) - delta)
        assert written[site].rank == 2 and written[site].dtype == dtype
        assert small.sites[site].error == pytest.approx(error, rel=1e-9)
        # the truncation itself is optimal; what rounding adds to it is orthogonal but for its own size
        assert error >= dense_best(delta, 2) * (1 - 1e-12)
        if dtype == "float64":
            assert error == pytest.approx(dense_best(delta, 2), rel=1e-9)
    assert small.parameters == 2 * sum(sum(shape) for shape in SHAPES.values())


def test_the_gauge_changes_nothing() -> None:
    random = np.random.default_rng(0)
    turned = gauged(planted(), lambda rank: random_gauge(rank, condition=30.0, rng=random))
    for options in ({"cut": Cut(rank=2)}, {"cut": Cut(error=0.3)}, {"budget": 120}):
        one, other = resize(planted(), **options), resize(turned, **options)
        assert {site: own.rank for site, own in one.sites.items()} == {s: own.rank for s, own in other.sites.items()}
        for site in one.adapter:
            deltas = [result.adapter[site].delta_weight(np.float64) for result in (one, other)]
            assert np.linalg.norm(deltas[0] - deltas[1]) <= 1e-9 * np.linalg.norm(deltas[0])


@pytest.mark.parametrize("cut", [Cut(energy=1.0), Cut(error=0.0), Cut(ratio=1e-15)], ids=["energy", "error", "ratio"])
def test_rounding_of_a_badly_conditioned_gauge_is_no_direction(cut: Cut) -> None:
    random = np.random.default_rng(5)
    B, A = random.standard_normal((64, 4)), random.standard_normal((4, 48))
    B[:, 3] = 0.0
    for condition in (1.0, 1e8):
        M = random_gauge(4, condition=condition, rng=random)
        turned = Adapter({"q": LowRank(B @ np.linalg.inv(M), M @ A)})
        assert resize(turned, cut).sites["q"].rank == 3
        assert compress([turned], method="alone").pack.members[0].ranks == (3,)


def test_limits_hold_at_each_site() -> None:
    for bound in (0.6, 0.3, 1e-3):
        small = resize(planted(), Cut(error=bound))
        assert all(site.relative_error <= bound for site in small.sites.values())
        lower = resize(planted(), Cut(rank=max(1, min(site.rank for site in small.sites.values()) - 1)))
        assert max(site.relative_error for site in lower.sites.values()) > bound
    small = resize(planted(), Cut(energy=0.8))
    assert all(1 - site.relative_error**2 >= 0.8 - 1e-12 for site in small.sites.values())


def test_a_budget_is_kept_and_sites_without_a_share_are_left_out_and_counted() -> None:
    adapter = planted()
    weak = adapter["layers.0.k"]
    adapter = Adapter(adapter.sites | {"layers.0.k": LowRank(weak.stored["B"] * 1e-3, weak.stored["A"])})
    small = resize(adapter, budget=170)
    assert small.left_out == ("layers.0.k",) and set(small.adapter) == set(SHAPES) - {"layers.0.k"}
    assert small.allocation is not None and small.parameters == small.allocation.parameters <= 170
    errors = [
        np.linalg.norm(
            update.delta_weight(np.float64)
            - (small.adapter[site].delta_weight(np.float64) if site in small.adapter else 0)
        )
        for site, update in adapter.items()
    ]
    norms = [np.linalg.norm(update.delta_weight(np.float64)) for update in adapter.values()]
    assert small.relative_error == pytest.approx(np.linalg.norm(errors) / np.linalg.norm(norms), rel=1e-9)
    assert small.relative_error == pytest.approx(small.allocation.relative_error, rel=1e-9)
    assert small.allocation.least_error <= small.relative_error
    whole = resize(adapter, budget=10_000)
    assert whole.relative_error < 1e-12 and whole.left_out == ()


def test_what_the_cut_takes_away_counts_in_the_figures_of_a_budget() -> None:
    """A budget with room for all, so that the cut alone decides: the bound is the error."""
    small = resize(planted(), Cut(rank=2), budget=10_000, dtype=np.float64)
    assert small.allocation is not None and small.relative_error > 0.1
    assert small.allocation.relative_error == pytest.approx(small.relative_error, rel=1e-9)
    assert small.allocation.least_error == pytest.approx(small.relative_error, rel=1e-9)


def test_a_site_that_changes_its_bias_is_not_left_out() -> None:
    strong = LowRank(np.eye(4, 2) * 5, np.eye(2, 4))
    biased = LowRank(np.eye(4, 1) * 1e-3, np.eye(1, 4), scale=2.0, bias=np.ones(4))
    small = resize(Adapter({"q": strong, "k": biased}), budget=16)
    assert {name: site.rank for name, site in small.sites.items()} == {"q": 1, "k": 1}
    np.testing.assert_array_equal(small.adapter["k"].delta_bias(np.float64), np.full(4, 2.0))


def test_saved_tensors_stay_and_structured_updates_become_plain_factors() -> None:
    random = np.random.default_rng(0)
    tensors: dict[str, Any] = {
        f"lora_unet_q.hada_w{half}_{side}": random.standard_normal(shape).astype(np.float32)
        for half in (1, 2)
        for side, shape in (("a", (12, 2)), ("b", (2, 10)))
    }
    tensors["lora_unet_q.alpha"] = np.float32(2)
    (site, update), *_ = formats.read(_saved(tensors)).items()
    assert update.kind == "loha"
    small = resize(Adapter({site: update}, leftovers={"head.weight": np.ones((2, 2))}), Cut(rank=3))
    assert small.adapter[site].kind == "lora" and small.adapter[site].rank == 3
    assert list(small.adapter.leftovers) == ["head.weight"]
    assert small.sites[site].error == pytest.approx(dense_best(update.delta_weight(np.float64), 3), rel=1e-5)


def _saved(tensors: dict[str, Any]) -> Path:
    import tempfile

    import safetensors.numpy

    path = Path(tempfile.mkdtemp()) / "a.safetensors"
    safetensors.numpy.save_file({name: np.asarray(tensor) for name, tensor in tensors.items()}, path)
    return path


def test_what_only_the_base_tells_is_refused_or_left_as_it_is(tmp_path: Path) -> None:
    import safetensors.numpy

    tensors = {
        "base_model.model.q.lora_A.weight": np.ones((2, 3), np.float32),
        "base_model.model.q.lora_B.weight": np.ones((4, 2), np.float32),
        "base_model.model.q.lora_magnitude_vector": np.ones(4, np.float32),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "use_dora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    dora = formats.read(tmp_path)
    with pytest.raises(AdapterError, match=r"q: the ΔW of an update of the kind dora .*(?s:.)*--allow-loss"):
        resize(dora, Cut(rank=1))
    mixed = Adapter({"q": dora["q"], "k": planted()["layers.0.k"]})
    small = resize(mixed, Cut(rank=1), is_loss_allowed=True)
    assert small.unchanged == ("q",) and small.adapter["q"] is dora["q"] and small.adapter["k"].rank == 1
    with pytest.raises(AdapterError, match="nothing to resize"):
        resize(dora, Cut(rank=1), is_loss_allowed=True)


def test_bad_input_is_refused() -> None:
    nan = planted()["layers.0.q"].stored["B"].copy()
    nan[0, 0] = np.nan
    with pytest.raises(AdapterError, match=r"layers.0.k: non-finite value in B"):
        resize(Adapter({"layers.0.k": LowRank(nan, np.ones((5, 3)))}), Cut(rank=1))
    for options, text in (({"rank": 0}, "rank 0"), ({"energy": 2.0}, "no such share"), ({"error": 1.0}, "no such rel")):
        with pytest.raises(LorascopeError, match=text):
            Cut(**options)
    with pytest.raises(LorascopeError, match="no room for a single direction"):
        resize(planted(), budget=18)
    with pytest.raises(LorascopeError, match="nothing is asked for"):
        resize(planted())
    doubtful = Adapter(planted().sites, notes=(Note("scale", "unknown", is_doubt=True),))
    with pytest.raises(AdapterError, match="not certain"):
        resize(doubtful, Cut(rank=1))
    zero = Adapter({"q": LowRank(np.zeros((3, 2)), np.ones((2, 3)))})
    with pytest.raises(AdapterError, match="every ΔW is zero"):
        resize(zero, budget=100)
    assert resize(zero, Cut(rank=1)).relative_error == 0.0
    huge = Adapter({"q": LowRank(np.full((3, 2), 1e200), np.full((2, 3), 1e200))})
    with pytest.raises(AdapterError, match=r"q: the update is too large to compute with"):
        resize(huge, Cut(rank=1))
    empty = Adapter({"q": LowRank(np.zeros((3, 0)), np.zeros((0, 3)))})
    assert resize(empty, Cut(rank=1)).relative_error == 0.0


def run(arguments: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and standard output of a verb."""
    monkeypatch.setattr(sys, "argv", ["lorascope", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().out


def test_the_verb_writes_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    formats.write(planted(dtype=np.float32), tmp_path / "a")
    code, out = run(["resize", tmp_path / "a", "-o", tmp_path / "b", "--rank", 2, "--json"], monkeypatch, capsys)
    report = json.loads(out)
    small = resize(formats.read(tmp_path / "a"), Cut(rank=2))
    assert code == 0 and report["relative_error"] == pytest.approx(small.relative_error, rel=1e-6)
    assert {update.rank for update in formats.read(tmp_path / "b").values()} == {2}
    code, out = run(["resize", tmp_path / "a", "-o", tmp_path / "c", "--budget", 120], monkeypatch, capsys)
    assert code == 0 and "of the budget of 120 parameters" in out
    for wrong in (["--rank", 0], ["--energy", 2], ["--budget", 3], []):
        code, out = run(["resize", tmp_path / "a", "-o", tmp_path / "d", *wrong, "--json"], monkeypatch, capsys)
        assert code == 2 and json.loads(out)["error"] == "LorascopeError" and not (tmp_path / "d").exists()
    code, out = run(["resize", tmp_path / "a", "-o", tmp_path / "a", "--rank", 1, "--json"], monkeypatch, capsys)
    assert code == 2 and json.loads(out)["error"] == "OutputError"


def test_a_limit_out_of_its_range_is_named_as_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in (("--rank", 0), ("--energy", 2), ("--ratio", 2), ("--error", 2)):
        code, out = run(["resize", tmp_path / "a", "-o", tmp_path / "b", key, value, "--json"], monkeypatch, capsys)
        assert code == 2 and json.loads(out)["key"] == key


def test_a_kohya_file_stays_one_and_says_its_new_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import safetensors.numpy

    random = np.random.default_rng(0)
    tensors = {
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": random.standard_normal((4, 6), np.float32),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": random.standard_normal((5, 4), np.float32),
        "lora_unet_mid_block_attentions_0_proj_in.alpha": np.array(2, np.float32),
    }
    metadata = {"ss_network_dim": "4", "ss_network_alpha": "2", "sshs_model_hash": "0", "ss_title": "kept"}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors", metadata)
    arguments = ["resize", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", "--rank", 2]
    assert run(arguments, monkeypatch, capsys)[0] == 0
    after = formats.read(tmp_path / "b.safetensors")
    found = after.provenance.metadata
    assert after.provenance.format == "kohya"
    assert (found["ss_network_dim"], found["ss_network_alpha"], found["ss_title"]) == ("2", "2", "kept")
    assert "sshs_model_hash" not in found
