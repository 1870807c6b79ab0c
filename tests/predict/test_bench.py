"""The bench: every row is there whatever a model does, and its numbers are those that they should be."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from benched import Breaking, rows, small
from lorascope.errors import LorascopeError, PredictorError
from lorascope.predict import MODELS, fit_predictor
from lorascope.predict.bench import Plan, attack_names, bench, cells_of, contenders
from lorascope.predict.model import DEFAULT_MODEL
from planted import planted_adapter, planted_dataset

BASELINES = ["hyperparameters", "norms", "shuffled"]


@pytest.fixture(scope="module")
def dataset():
    return planted_dataset(80)


@pytest.fixture(scope="module")
def result(dataset):
    plan = Plan(
        {"ridge": small(), "broken": Breaking()},
        ["classes", "size"],
        (0, 1),
        attack_names(),
        also={"other": planted_dataset(30, seed=5)},
    )
    return bench({"planted": dataset}, plan)


def test_every_table_has_every_row(result):
    assert [(table.target, table.metric) for table in result.tables] == [("classes", "auroc"), ("size", "r2")]
    for table in result.tables:
        assert [row.label for row in table.rows] == ["ridge", "broken", *BASELINES]
        assert (table.taught, table.tested, table.unlabelled) == (64, 16, 0)
        assert table.best == "ridge"


def test_scores_are_those_of_the_predictor_with_these_members(result, dataset):
    predictor = fit_predictor(dataset, "size", small(), seeds=(0, 1))
    test = dataset.subset(dataset.where("test"))
    inputs = predictor.model.inputs(test.samples, predictor.structure)
    expected = predictor.evaluate(inputs, test.values("size")).metrics
    found = rows(result.tables[1])["ridge"].metrics
    for name, value in expected.items():
        if name in ("coverage_90", "width_90"):  # of all members together there, of each member alone here
            continue
        assert found[name].mean == pytest.approx(value["mean"], abs=1e-12)
        assert found[name].sd == pytest.approx(value["sd"], abs=1e-12)


def test_cost_is_stated(result):
    ridge = rows(result.tables[1])["ridge"]
    assert ridge.parameters > 0
    assert ridge.training_seconds > 0
    assert ridge.adapters_per_second > 0


def test_a_model_that_breaks_ends_nothing_and_says_why(result):
    broken = rows(result.tables[0])["broken"]
    assert (broken.status, broken.reason) == ("failed", "RuntimeError: no such device")
    assert result.has_failed


def test_a_model_that_refuses_an_attack_says_why_and_is_no_failure(dataset):
    plan = Plan({"mlp": small("mlp")}, ["size"], (0,), ("padding", "gauge"))
    found = bench({"planted": dataset}, plan)
    columns = rows(found.tables[0])["mlp"].columns
    assert columns["padding"].status == "refused"
    assert "rank" in columns["padding"].reason
    assert columns["gauge"].status == "ok"
    assert not found.has_failed


def test_attacks_that_keep_the_update_change_no_invariant_score(result):
    for table in result.tables:
        ridge = rows(table)["ridge"]
        for name in ("gauge", "padding"):
            entry = ridge.columns[name]
            before = entry.facts["before"]
            assert entry.score.mean == pytest.approx(before["mean"], abs=1e-3)
            assert entry.kept == pytest.approx(1.0, abs=1e-2)
            assert entry.n == table.tested


def test_how_far_attacks_move_the_update_is_measured(result):
    moved = {column.name: column.relative_change for column in result.zoos[0].columns}
    assert moved["gauge"] < 1e-4
    assert moved["padding"] < 1e-6
    assert 5 * moved["noise 1 %"] < moved["noise 10 %"] < 20 * moved["noise 1 %"]
    assert math.isnan(moved["unseen-range"])


def test_labels_shuffled_among_groups_teach_nothing(result):
    classes, size = (rows(table)["shuffled"].metrics for table in result.tables)
    # 16 test adapters of 6 labels, two members; .5 and 0 but for luck
    assert abs(classes["auroc"].mean - 0.5) < 0.15
    assert size["r2"].mean < 0.3
    assert rows(result.tables[1])["ridge"].metrics["r2"].mean > 0.8


def test_the_difference_to_the_best_is_paired(result):
    for table in result.tables:
        found = rows(table)
        assert found["ridge"].to_best == (0.0, 0.0, 0.0)
        norms = found["hyperparameters"].to_best
        expected = found["hyperparameters"].metrics[table.metric].mean - found["ridge"].metrics[table.metric].mean
        assert norms.difference == pytest.approx(expected, abs=1e-6)  # predictions are kept in float32
        assert norms.low <= norms.difference <= norms.high
        assert found["broken"].to_best is None


def test_the_result_is_json_with_nulls(result):
    value = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert value["schema_version"] == 2
    assert value["zoos"][0]["splits"] == {"train": 64, "validation": 0, "test": 16}
    broken = value["tables"][0]["rows"][1]
    assert broken["training_seconds"] is None


def test_adapters_of_groups_seen_in_training_are_left_out_of_another_zoo(dataset):
    other = planted_dataset(30, seed=5)
    known = {group for group, split in zip(dataset.groups, dataset.splits, strict=True) if split != "test"}
    seen = sum(group in known for group in other.groups)
    renamed = replace(other, groups=tuple(f"new-{group}" for group in other.groups), _inputs={})
    plan = Plan({"ridge": small()}, ["size"], (0,), also={"other": other, "renamed": renamed})
    columns = rows(bench({"planted": dataset}, plan).tables[0])["ridge"].columns
    assert (columns["other"].n, columns["other"].facts["seen"]) == (30 - seen, seen)
    assert (columns["renamed"].n, columns["renamed"].facts["seen"]) == (30, 0)
    assert 0 < seen < 30


def test_baselines_come_by_themselves_and_once():
    ridge = small()
    assert [row.label for row in contenders({"ridge": ridge})] == ["ridge", *BASELINES]
    default = MODELS[DEFAULT_MODEL]()
    given = contenders({"hyperparameters": MODELS["hyperparameters"](), DEFAULT_MODEL: default})
    assert [row.label for row in given] == [DEFAULT_MODEL, *BASELINES]
    assert given[-1].model is default  # with the options that were given
    with pytest.raises(PredictorError, match="baseline"):
        contenders({"shuffled": ridge})


def test_the_number_of_members_is_known_before(dataset):
    done = []
    plan = Plan({"ridge": small()}, ["size", "first"], (0, 1))
    bench({"planted": dataset}, plan, done=done.append)
    assert sum(done) == cells_of({"planted": dataset}, plan) == 16


def test_an_unknown_attack_is_one_clear_error(dataset):
    with pytest.raises(LorascopeError, match="did you mean 'gauge'"):
        bench({"planted": dataset}, Plan({"ridge": small()}, ["size"], (0,), ("gaugee",)))


def test_without_room_for_features_the_result_is_the_same(dataset, monkeypatch):
    plan = Plan({"ridge": small()}, ["size"], (0, 1), ("gauge", "int8"))
    kept = bench({"planted": dataset}, plan)
    monkeypatch.setattr("lorascope.predict.bench.measures.ROOM", 0)
    again = bench({"planted": dataset}, plan)
    first, second = (rows(found.tables[0])["ridge"].columns for found in (kept, again))
    assert {name: entry.score for name, entry in first.items()} == {name: entry.score for name, entry in second.items()}


def test_two_columns_of_one_name_are_one_clear_error(dataset):
    for name in ("gauge", "clean"):
        plan = Plan({"ridge": small()}, ["size"], (0,), ("gauge",), also={name: dataset})
        with pytest.raises(PredictorError, match=f"{name}: two columns"):
            bench({"planted": dataset}, plan)


def test_of_several_zoos_the_error_says_which(dataset):
    zoos = {"good": dataset, "small": planted_dataset(3)}
    with pytest.raises(PredictorError, match=r"^small: size: too few"):
        bench(zoos, Plan({"ridge": small()}, ["size"], (0,)))


def test_each_zoo_has_its_tables(dataset):
    zoos = {"one": dataset, "two": planted_dataset(40, seed=3)}
    found = bench(zoos, Plan({"ridge": small()}, ["size"], (0,)))
    assert [(table.zoo, table.taught + table.tested) for table in found.tables] == [("one", 80), ("two", 40)]
    assert len({zoo.digest for zoo in found.zoos}) == 2


def test_a_larger_rank_among_the_tested_is_refused_by_the_model_that_cannot(dataset):
    rng = np.random.default_rng(0)
    test = int(dataset.where("test")[0])
    wide = planted_adapter(rng, [0, 1], 1.0, rank=9)
    samples = tuple(s._replace(read=lambda: wide) if i == test else s for i, s in enumerate(dataset.samples))
    wider = replace(dataset, samples=samples, _inputs={})
    found = rows(bench({"planted": wider}, Plan({"mlp": small("mlp"), "ridge": small()}, ["size"], (0,))).tables[0])
    assert found["mlp"].status == "refused"
    assert found["ridge"].status == "ok"
