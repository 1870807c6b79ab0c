"""Packs of adapters: bases from factors, invariance, errors as reported."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.adapter import Adapter, LowRank
from lorascope.cli import main
from lorascope.compress import compress, decompress, read_pack, write_pack
from lorascope.compress.clusters import clustered
from lorascope.compress.diagonal import diagonal_factors
from lorascope.compress.shared_bases import shared_bases
from lorascope.errors import AdapterError, LorascopeError
from lorascope.symmetry import gauged, random_gauge
from lorascope.symmetry.common_sites import Pair

SHAPES = {"layers.0.q": (14, 11), "layers.0.k": (8, 14), "layers.1.q": (14, 11)}
FLOAT32 = 1e-5  # of factors that are stored and multiplied in float32, relative to ‖ΔW‖


def some(count: int = 6, common: int = 5, dtype: Any = np.float64) -> list[Adapter]:
    """Adapters of ranks 2 and 3 and several scales whose ΔW lie mostly in spaces of dimension ``common``."""
    random = np.random.default_rng(5)
    spaces = {
        site: (random.standard_normal((out, common)), random.standard_normal((common, in_)))
        for site, (out, in_) in SHAPES.items()
    }
    found: list[Adapter] = []
    for number in range(count):
        rank = 2 + number % 2
        sites: dict[str, Any] = {}
        for site, (left, right) in spaces.items():
            if number == 1 and site == "layers.0.k":
                continue
            B = left @ random.standard_normal((common, rank)) + 0.1 * random.standard_normal((left.shape[0], rank))
            A = random.standard_normal((rank, common)) @ right
            sites[site] = LowRank(B.astype(dtype), A.astype(dtype), scale=0.5 + number)
        found.append(Adapter(sites))
    return found


def dense(adapter: Adapter, site: str) -> np.ndarray:
    return adapter[site].delta_weight(np.float64) if site in adapter else np.zeros(SHAPES[site])


def measured(before: Adapter, after: Adapter) -> float:
    """The relative error over all sites, from ΔW in full."""
    errors = [np.linalg.norm(dense(before, site) - dense(after, site)) for site in SHAPES]
    return float(np.linalg.norm(errors) / np.linalg.norm([np.linalg.norm(dense(before, site)) for site in SHAPES]))


def pairs() -> list[Pair]:
    return [Pair(*one["layers.0.q"].factors(np.float64)[:2]) for one in some()]


def test_the_bases_from_factors_are_those_of_the_matrices_in_full() -> None:
    inputs, weights, width = pairs(), np.linspace(1, 2, 6), 4
    whole = [weight * one.B @ one.A for one, weight in zip(inputs, weights, strict=True)]
    expected = np.linalg.svd(np.concatenate(whole, axis=1))[0][:, :width]
    found = shared_bases(inputs, weights, width, "eigen")
    np.testing.assert_allclose(found.U @ found.U.T, expected @ expected.T, atol=1e-9)
    expected = np.linalg.svd(np.concatenate([one.T for one in whole], axis=1))[0][:, :width]
    np.testing.assert_allclose(found.V @ found.V.T, expected @ expected.T, atol=1e-9)


def test_joint_bases_keep_no_less_and_are_where_neither_side_can_be_better() -> None:
    inputs, weights, width = pairs(), np.ones(6), 3
    whole = [one.B @ one.A for one in inputs]

    def kept(bases: Any) -> float:
        return sum(float(np.sum((bases.U.T @ one @ bases.V) ** 2)) for one in whole)

    joint, eigen = (shared_bases(inputs, weights, width, way) for way in ("joint", "eigen"))
    assert kept(joint) >= kept(eigen) * (1 - 1e-12)
    best = sum(float(np.sum(np.linalg.svd(one, compute_uv=False)[:width] ** 2)) for one in whole)
    assert kept(joint) <= best * (1 + 1e-12)
    beside = np.linalg.svd(np.concatenate([one @ joint.V for one in whole], axis=1))[1][:width]
    assert kept(joint) == pytest.approx(float(np.sum(beside**2)), rel=1e-4)  # where the turns end
    np.testing.assert_allclose(joint.U.T @ joint.U, np.eye(width), atol=1e-12)


def test_diagonal_cores_are_where_no_part_can_be_better_alone_and_find_what_is_planted() -> None:
    random = np.random.default_rng(0)
    left, right, cores = (random.standard_normal(shape) for shape in ((14, 3), (3, 11), (6, 3)))
    planted = [Pair(left * own, right) for own in cores]
    U, V, c = diagonal_factors(planted, np.ones(6), 3)
    for pair, own in zip(planted, c, strict=True):
        assert np.linalg.norm(U * own @ V.T - pair.B @ pair.A) <= 1e-3 * np.linalg.norm(pair.B @ pair.A)
    inputs, weights = pairs(), np.linspace(1, 2, 6)
    U, V, c = diagonal_factors(inputs, weights, 4)
    for pair, own in zip(inputs, c, strict=True):  # what is left is at right angles to every direction
        left_over = pair.B @ pair.A - U * own @ V.T
        angles = np.sum(U * (left_over @ V), axis=0) / np.linalg.norm(U, axis=0) / np.linalg.norm(V, axis=0)
        np.testing.assert_allclose(angles, 0, atol=1e-9 * np.linalg.norm(left_over))


@pytest.mark.parametrize("method", ["joint", "eigen", "diagonal", "alone"])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_the_gauge_changes_nothing(method: Any, bits: Any) -> None:
    random = np.random.default_rng(0)
    turned = [gauged(one, lambda rank: random_gauge(rank, condition=30.0, rng=random)) for one in some()]
    results = [compress(one, method=method, rank=3, bits=bits, dtype=np.float64) for one in (some(), turned)]
    # singular vectors keep their signs open, which moves no error; codes at half a step may fall either way
    tolerance = 1e-5 if bits is None else 2e-3
    for one, other in zip(*(result.errors.values() for result in results), strict=True):
        assert one.relative_error == pytest.approx(other.relative_error, rel=tolerance, abs=1e-6)


@pytest.mark.parametrize("method", ["joint", "eigen", "diagonal", "alone"])
@pytest.mark.parametrize(("bits", "dtype"), [(None, "float32"), (None, "float16"), (8, "float32"), (4, "float32")])
@pytest.mark.parametrize("clusters", [1, 2])
def test_the_error_reported_is_that_of_the_files_that_come_out(
    method: Any, bits: Any, dtype: str, clusters: int, tmp_path: Path
) -> None:
    inputs = some()
    result = compress(inputs, list("abcdef"), method=method, rank=3, bits=bits, dtype=dtype, clusters=clusters)
    write_pack(result.pack, tmp_path / "p.safetensors")
    decompress(read_pack(tmp_path / "p.safetensors"), tmp_path / "out")
    for name, before in zip("abcdef", inputs, strict=True):
        after = formats.read(tmp_path / "out" / name)
        assert set(after) == set(before)
        own = result.errors[name]
        assert own.relative_error == pytest.approx(measured(before, after), rel=1e-5, abs=FLOAT32)
        assert own.norm == pytest.approx(before.norm(), rel=1e-12)
    assert result.mean_error == pytest.approx(np.mean([one.relative_error for one in result.errors.values()]))
    assert result.worst[1] == max(one.relative_error for one in result.errors.values())


def test_bases_that_are_wide_enough_lose_nothing_and_ranks_stay() -> None:
    result = compress(some(), rank=14)
    assert result.worst[1] < FLOAT32
    whole = compress(some(), method="alone")
    assert whole.worst[1] < FLOAT32
    assert [whole.pack.unpacked(0)["layers.0.q"].rank, whole.pack.unpacked(1)["layers.0.q"].rank] == [2, 3]
    wide = compress(some(4, common=14), rank=12)  # cores of rank 2 in bases of width 12: factors are smaller
    assert {wide.pack.unpacked(0)[site].rank for site in SHAPES} == {2}


def test_clusters_find_what_belongs_together() -> None:
    random = np.random.default_rng(1)
    spaces = [(np.linalg.qr(random.standard_normal((20, 3)))[0], random.standard_normal((3, 16))) for _ in range(3)]
    inputs = [
        Pair(left @ random.standard_normal((3, 2)), random.standard_normal((2, 3)) @ right)
        for left, right in spaces * 5
    ]
    weights = np.array([1 / np.linalg.norm(one.B @ one.A) for one in inputs])
    numbers = clustered(["q"], lambda site: inputs, weights, 3, 3)
    groups = [set(numbers[start::3].tolist()) for start in range(3)]
    assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) == 3
    adapters = [Adapter({"q": LowRank(*one)}) for one in inputs]
    assert compress(adapters, rank=3, clusters=3).worst[1] < FLOAT32
    assert compress(adapters, rank=3).worst[1] > 0.1
    assert len(set(clustered(["q"], lambda site: inputs[:1] * 4, np.ones(4), 3, 3).tolist())) == 3  # none is empty


def test_an_adapter_of_zeros_comes_back_as_zeros() -> None:
    zero = Adapter({"layers.0.q": LowRank(np.zeros((14, 2)), np.ones((2, 11)))})
    result = compress([*some(), zero], rank=3)
    assert result.pack.unpacked(6).norm() == 0.0 and list(result.errors.values())[6].relative_error == 0.0


@pytest.mark.parametrize("method", ["joint", "eigen", "diagonal", "alone"])
def test_a_site_without_rank_in_any_adapter_stays_without(method: Any) -> None:
    one = Adapter({"q": LowRank(np.zeros((4, 0)), np.zeros((0, 3))), "k": LowRank(np.ones((4, 2)), np.ones((2, 3)))})
    result = compress([one, one], method=method)
    assert result.worst[1] < FLOAT32 and set(result.pack.unpacked(1)) == {"k"}


def test_what_does_not_fit_is_refused() -> None:
    inputs = some(2)
    huge = Adapter({"layers.0.q": LowRank(np.full((14, 1), 1e200), np.full((1, 11), 1e200))})
    with pytest.raises(AdapterError, match=r"b: layers.0.q: the update is too large"):
        compress([inputs[0], huge], ["a", "b"])
    nan = inputs[1]["layers.0.q"].stored["B"].copy()
    nan[0, 0] = np.nan
    spoilt = Adapter(inputs[1].sites | {"layers.0.q": LowRank(nan, inputs[1]["layers.0.q"].stored["A"])})
    with pytest.raises(AdapterError, match=r"b: layers.0.q: non-finite value"):
        compress([inputs[0], spoilt], ["a", "b"])
    other = Adapter({"layers.0.q": LowRank(np.ones((3, 1)), np.ones((1, 3)))})
    with pytest.raises(AdapterError, match="not of one base model"):
        compress([inputs[0], other])
    saved = Adapter(inputs[0].sites, leftovers={"head.weight": np.ones(2)})
    with pytest.raises(AdapterError, match=r"head.weight(?s:.)*--allow-loss"):
        compress([saved])
    assert compress([saved], is_loss_allowed=True).left_out == ("the tensor head.weight of adapter 1",)
    for options in ({"rank": 0}, {"clusters": 0}, {"method": "other"}, {"bits": 3}, {"dtype": "float8_e5m2"}):
        with pytest.raises(LorascopeError):
            compress(inputs, **options)  # type: ignore[arg-type]  # of several types
    with pytest.raises(LorascopeError, match="nothing to compress"):
        compress([])


def run(arguments: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and standard output of a verb."""
    monkeypatch.setattr(sys, "argv", ["lorascope", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().out


def test_the_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, one in zip("abc", some(3, dtype=np.float32), strict=True):
        formats.write(one, tmp_path / "many" / name)
    pack = tmp_path / "p.safetensors"
    command = ["compress", tmp_path / "many", "-o", pack, "--rank", 3, "--quantise", "int8", "--json"]
    code, out = run(command, monkeypatch, capsys)
    report = json.loads(out)
    assert code == 0 and set(report["adapters"]) == {"a", "b", "c"} and report["output_bytes"] == pack.stat().st_size
    code, out = run(["decompress", pack, "-o", tmp_path / "out", "--only", "b", "--json"], monkeypatch, capsys)
    assert code == 0 and [Path(one).name for one in json.loads(out)["adapters"]] == ["b"]
    error = measured(formats.read(tmp_path / "many" / "b"), formats.read(tmp_path / "out" / "b"))
    assert report["adapters"]["b"]["relative_error"] == pytest.approx(error, rel=1e-5)
    code, out = run(["decompress", pack, "-o", tmp_path / "out", "--json"], monkeypatch, capsys)
    assert code == 2 and "already there" in json.loads(out)["what"]
    code, out = run(["compress", tmp_path / "many", "--sweep", "2,4"], monkeypatch, capsys)
    assert code == 0 and out.count("%") == 3
    for arguments, said in (([], "nothing says what to do"), (["-o", pack, "--sweep", "2"], "-o writes one pack")):
        code, out = run(["compress", tmp_path / "many", *arguments, "--json"], monkeypatch, capsys)
        assert code == 2 and said in json.loads(out)["what"]


def test_a_pack_that_is_hardly_worth_having_is_held_against_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, one in zip("abcdef", some(6, common=8, dtype=np.float32), strict=True):
        formats.write(one, tmp_path / "many" / name)
    arguments = ["compress", tmp_path / "many", "-o", tmp_path / "p", "--rank", 1, "--quantise", "int8"]
    report = json.loads(run([*arguments, "--json"], monkeypatch, capsys)[1])
    alone = compress(some(6, common=8, dtype=np.float32), method="alone", bits=8)
    assert report["relative_error"]["mean"] > 0.5 and len(report["warnings"]) == 1
    assert report["alone"]["bytes"] == alone.nbytes
    assert report["alone"]["relative_error"]["mean"] == pytest.approx(alone.mean_error)
    code, out = run([*arguments, "--overwrite"], monkeypatch, capsys)
    assert code == 0 and "warning: the bases they share" in out and "--method alone --quantise int8 has" in out
    # two of them in bases that hold them both: nothing is lost, and nothing is gained
    arguments = ["compress", tmp_path / "many" / "a", tmp_path / "many" / "b", "-o", tmp_path / "q"]
    code, out = run(arguments, monkeypatch, capsys)
    assert code == 0 and "warning: the pack is larger than what went in: 1" in out and "--quantise int8" in out
    arguments = ["compress", tmp_path / "many", "-o", tmp_path / "r", "--method", "alone", "--quantise", "int8"]
    report = json.loads(run([*arguments, "--json"], monkeypatch, capsys)[1])
    assert report["warnings"] == [] and report["alone"] is None
    assert "warning" not in run(arguments, monkeypatch, capsys)[1]


def test_one_bad_adapter_is_an_error_by_itself_and_counted_among_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, one in zip("abc", some(3, dtype=np.float32), strict=True):
        formats.write(one, tmp_path / "many" / name)
    bad = some(1, dtype=np.float32)[0]
    spoilt = np.full((14, 2), np.nan, np.float32)
    formats.write(
        Adapter(bad.sites | {"layers.0.q": LowRank(spoilt, np.ones((2, 11), np.float32))}), tmp_path / "many" / "bad"
    )
    pack = tmp_path / "p.safetensors"
    code, out = run(["compress", tmp_path / "many", "-o", pack, "--json"], monkeypatch, capsys)
    report = json.loads(out)
    assert code == 1 and len(report["adapters"]) == 3 and len(report["failures"]) == 1
    assert "non-finite" in report["failures"][0]["what"] and report["failures"][0]["file"]
    pack.unlink()
    names = [tmp_path / "many" / name for name in ("a", "bad")]
    code, out = run(["compress", *names, "-o", pack, "--json"], monkeypatch, capsys)
    assert code == 2 and "non-finite" in json.loads(out)["what"] and not pack.exists()
    assert math.isfinite(report["relative_error"]["worst"])
