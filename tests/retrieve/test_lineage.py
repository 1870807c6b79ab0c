"""A planted family is told from its weights, and strangers are not taken into it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

from lorascope.adapter import Adapter, LowRank
from lorascope.cli import app
from lorascope.errors import LorascopeError, MissingExtraError
from lorascope.formats import write
from lorascope.merge import merge
from lorascope.retrieve import lineage
from lorascope.symmetry import gauged, random_gauge, refactored, thin_svd
from lorascope.symmetry.truncation import truncated
from retrieve.test_sketch import planted


def in_dtype(adapter: Adapter, dtype: Any) -> Adapter:
    return refactored(adapter, lambda B, A: (B.astype(dtype), A.astype(dtype)))


def cut(adapter: Adapter, rank: int) -> Adapter:
    return refactored(adapter, lambda B, A: truncated(thin_svd(B, A), rank)[:2])


def family() -> dict[str, Adapter]:
    random = np.random.default_rng(0)
    found = {f"stranger{seed}": in_dtype(planted(seed), np.float32) for seed in range(6)}
    one, two = found["stranger0"], found["stranger1"]
    found["gauge"] = gauged(one, lambda rank: random_gauge(rank, condition=5.0, rng=random), dtype=np.float32)
    found["bfloat16"] = in_dtype(two, ml_dtypes.bfloat16)
    found["rank 2"] = in_dtype(cut(found["stranger2"], 2), np.float32)
    found["merge"] = merge([found["stranger3"], found["stranger4"]], "linear", weights=[0.7, 0.6]).adapter
    found["twice"] = Adapter({s: LowRank(u.B, u.A, 2.0) for s, u in found["stranger5"].items()})  # type: ignore[attr-defined]  # all are LowRank
    start = in_dtype(planted(50), np.float32)
    found["start"] = start
    steps = {site: 0.3 * random.standard_normal(update.stored["B"].shape) for site, update in start.items()}
    found["later"] = Adapter(
        {s: LowRank((1.2 * u.stored["B"] + steps[s]).astype(np.float32), u.stored["A"]) for s, u in start.items()}
    )
    return found


def test_each_relation_is_told_and_no_other() -> None:
    some = family()
    edges = lineage(list(some.values()), list(some))
    told = {(edge.relation, edge.child, frozenset(edge.parents)) for edge in edges}
    expected = {
        ("same", "gauge", frozenset({"stranger0"})),
        ("requantised", "bfloat16", frozenset({"stranger1"})),
        ("resized", "rank 2", frozenset({"stranger2"})),
        ("merged", "merge", frozenset({"stranger3", "stranger4"})),
        ("continued", "later", frozenset({"start"})),
    }
    scaled = {edge for edge in told if edge[0] == "scaled"}
    assert told - scaled == expected
    # either is a multiple of the other
    assert {frozenset({child}) | parents for _, child, parents in scaled} == {frozenset({"twice", "stranger5"})}
    [merged] = [edge for edge in edges if edge.relation == "merged"]
    assert merged.is_directed and merged.evidence["relative_rest"] < 1e-6
    weights = dict(zip(merged.parents, merged.evidence["weights"], strict=True))
    assert abs(weights["stranger3"] - 0.7) < 1e-5 and abs(weights["stranger4"] - 0.6) < 1e-5
    [resized] = [edge for edge in edges if edge.relation == "resized"]
    assert resized.evidence["ranks"] == [2, 4] and resized.evidence["relative_error"] < 1e-6


def test_the_order_does_not_matter_and_strangers_are_none() -> None:
    some = family()
    backwards = lineage(list(reversed(some.values())), list(reversed(some)))
    directed = [
        {(e.relation, e.child, e.parents) for e in edges if e.is_directed and e.relation != "merged"}
        for edges in (lineage(list(some.values()), list(some)), backwards)
    ]
    assert directed[0] == directed[1] and len(directed[0]) == 2
    strangers = [planted(seed) for seed in range(20)]
    assert lineage(strangers, [f"s{k}" for k in range(20)]) == []


def test_a_sum_with_weights_of_both_signs_is_told_once() -> None:
    some = {name: adapter for name, adapter in family().items() if name.startswith("stranger")}
    some["signed"] = merge([some[f"stranger{k}"] for k in (1, 3, 4)], "linear", weights=[0.5, 0.3, -0.2]).adapter
    some["half"] = merge([some["stranger0"], some["stranger2"]], "linear", weights=[0.5, 0.5]).adapter
    told = {edge.relation: edge for edge in lineage(list(some.values()), list(some)) if edge.child != "half"}
    assert set(told) <= {"merged", "continued"} and told["merged"].child == "signed" and told["merged"].is_directed
    found = dict(zip(told["merged"].parents, told["merged"].evidence["weights"], strict=True))
    assert found == pytest.approx({"stranger1": 0.5, "stranger3": 0.3, "stranger4": -0.2}, abs=1e-5)
    # what is left when one is taken from another is told as that, not the other as a sum of the two
    less = merge([some["stranger3"], some["stranger4"]], "subtract").adapter
    [edge] = lineage([some["stranger3"], some["stranger4"], less], ["one", "two", "less"])
    assert (edge.relation, edge.child, set(edge.parents)) == ("merged", "less", {"one", "two"}) and edge.is_directed
    # all of one rank, in one space of rows: any of the four may be the sum
    rows = planted(7)
    parts = [Adapter({s: LowRank(planted(k)[s].B, u.A) for s, u in rows.items()}) for k in range(3)]  # type: ignore[attr-defined]  # all are LowRank
    columns = {s: sum(w * one[s].B for w, one in zip((0.5, 0.3, -0.2), parts, strict=True)) for s in rows}  # type: ignore[attr-defined]  # all are LowRank
    last = Adapter({s: LowRank(np.asarray(B), rows[s].A) for s, B in columns.items()})  # type: ignore[attr-defined]  # all are LowRank
    edges = lineage([*parts, last], ["a", "b", "c", "d"])
    assert [edge.is_directed for edge in edges if edge.relation == "merged"] == [False]


def test_the_commands(tmp_path: Path) -> None:
    for name, adapter in family().items():
        write(adapter, tmp_path / "all" / name.replace(" ", ""), format="peft")
    (tmp_path / "all" / "bad.safetensors").write_bytes(b"no")
    run = CliRunner()
    result = run.invoke(app, ["lineage", str(tmp_path / "all"), "--json"])
    assert isinstance(result.exception, SystemExit) and result.exit_code == 1, result.exception
    told = json.loads(result.stdout)
    assert told["schema_version"] == 1 and len(told["failures"]) == 1
    assert {edge["relation"] for edge in told["edges"]} >= {"same", "requantised", "resized", "merged", "continued"}
    said = run.invoke(app, ["lineage", str(tmp_path / "all")]).stdout
    assert "relations among" in said and "continued: a guess" in said and "↔: weights do not tell" in said
    merged = str(tmp_path / "all" / "merge")
    found = run.invoke(app, ["explain-merge", merged, "--among", str(tmp_path / "all"), "--json"])
    assert {Path(m["path"]).name for m in json.loads(found.stdout)["members"]} == {"stranger3", "stranger4"}
    assert "unexplained" in run.invoke(app, ["explain-merge", merged, "--among", str(tmp_path / "all")]).stdout


@pytest.mark.parametrize("count", [2, 5])
def test_without_scipy_it_is_said_whatever_the_adapters_are(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    some = list(family().items())[:count]
    with pytest.raises(MissingExtraError, match="telling merges needs scipy"):
        lineage([adapter for _, adapter in some], [name for name, _ in some])
    for words in (["lineage", "nowhere"], ["explain-merge", "nowhere", "--among", "nowhere"]):
        with pytest.raises(MissingExtraError, match="needs scipy"):
            CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.parametrize(
    "options",
    [
        {"tolerance": float("nan")},
        {"tolerance": 0.0},
        {"tolerance": -1.0},
        {"tolerance": 1.0},
        {"cosine": 0.0},
        {"cosine": 1.5},
    ],
)
def test_limits_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(LorascopeError, match="there is no such"):
        lineage([planted(1), planted(2)], ["a", "b"], **options)
