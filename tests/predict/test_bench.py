"""The bench: every row is there whatever a model does, nothing is measured twice, and nothing leaks."""

import json
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from lorascope.errors import LorascopeError, PredictorError
from lorascope.predict import MODELS, fit_predictor
from lorascope.predict.bench import Plan, attack_names, bench, cells_of, contenders
from lorascope.predict.bench.question import Question, Structures, askable, fingerprint, range_hyperparameter
from lorascope.predict.model import DEFAULT_MODEL
from lorascope.predict.models.ridge import Ridge
from planted import planted_adapter, planted_dataset

BASELINES = ["hyperparameters", "norms", "shuffled"]


def small(name="ridge"):
    return {"ridge": MODELS["ridge"](size=4), "mlp": MODELS["mlp"](epochs=3)}[name]


@dataclass(frozen=True)
class Counting(Ridge):
    """A ridge that says how often it is fitted."""

    name: ClassVar[str] = "counting"
    fits: ClassVar[list[int]] = []

    def fit(self, *arguments, seed):
        self.fits.append(seed)
        return super().fit(*arguments, seed=seed)


@dataclass(frozen=True)
class Breaking(Ridge):
    """A model of somebody else's that raises what it likes."""

    name: ClassVar[str] = "breaking"

    def fit(self, *arguments, seed):
        raise RuntimeError("no such device")


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


def rows(table):
    return {row.label: row for row in table.rows}


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
    assert value["schema_version"] == 1
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


def test_a_range_never_trained_on(dataset):
    structures = Structures(dataset)
    question = Question.of(dataset, "size", structures)
    narrowed, said = question.beyond("rate", structures)
    rate = [sample.hyperparameters["rate"] for sample in dataset.samples]
    taught, tested = ([rate[i] for i in part] for part in (narrowed.taught, narrowed.tested))
    assert max(taught) < min(tested)
    assert said.startswith("rate > ")
    assert set(narrowed.taught) < set(question.taught)
    assert set(narrowed.tested) < set(question.tested)
    assert len(taught) == pytest.approx(0.7 * len(question.taught), abs=1)


def test_a_range_whose_upper_end_is_one_value(dataset):
    few = tuple(s._replace(hyperparameters={"rank": 2 if i % 2 else 4}) for i, s in enumerate(dataset.samples))
    ranks = replace(dataset, samples=few, hyperparameters=("rank",), _inputs={})
    narrowed, said = Question.of(ranks, "size", Structures(ranks)).beyond("rank", Structures(ranks))
    assert said == "rank ≥ 4"
    assert {ranks.samples[i].hyperparameters["rank"] for i in narrowed.taught} == {2}


def test_the_hyperparameter_of_the_range_is_a_number_that_varies_and_no_seed(dataset):
    assert range_hyperparameter(dataset) == "rate"
    with pytest.raises(PredictorError, match="expected one of rate"):
        range_hyperparameter(dataset, "optimiser")
    fixed = tuple(s._replace(hyperparameters={"rate": 1.0, "seed": i}) for i, s in enumerate(dataset.samples))
    constant = replace(dataset, samples=fixed, hyperparameters=("rate", "seed"), _inputs={})
    assert range_hyperparameter(constant) is None
    found = bench({"planted": constant}, Plan({"ridge": small()}, ["size"], (0,), ("unseen-range",)))
    assert "not measured" in found.zoos[0].columns[0].meaning
    assert rows(found.tables[0])["ridge"].columns == {}


def test_shuffling_moves_whole_groups(dataset):
    grouped = replace(dataset, groups=tuple(f"g{i // 4}" for i in range(len(dataset))), _inputs={})
    question = Question.of(grouped, "size", Structures(grouped))
    shuffled = question.shuffled(0)
    assert np.array_equal(question.encoded, Question.of(grouped, "size", Structures(grouped)).encoded)
    assert not np.array_equal(shuffled.encoded, question.encoded)
    own = {}
    for group, value in zip(question.names(question.taught), question.encoded[:, 0], strict=True):
        own.setdefault(group, []).append(value)
    got = {}
    for group, value in zip(question.names(question.taught), shuffled.encoded[:, 0], strict=True):
        got.setdefault(group, []).append(value)
    for values in got.values():  # what a group has now was another's, from the first on
        assert any(values == (other * 2)[: len(values)] or values == other[: len(values)] for other in own.values())


def test_an_interrupted_bench_goes_on_and_comes_to_the_same(dataset, tmp_path):
    plan = Plan({"counting": Counting(size=4)}, ["size", "first"], (0, 1), ("gauge",))
    Counting.fits.clear()
    whole = bench({"planted": dataset}, plan, cells=tmp_path / "whole")
    assert sorted(Counting.fits) == [0, 0, 1, 1]

    Counting.fits.clear()
    finished = []

    def stop(count):
        finished.append(count)
        if len(finished) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench({"planted": dataset}, plan, cells=tmp_path / "parts", done=stop)
    assert len(list((tmp_path / "parts").glob("*.json"))) == 3
    again = bench({"planted": dataset}, plan, cells=tmp_path / "parts")
    assert len(Counting.fits) == 4  # three before the interruption, and the one that was missing
    for one, two in zip(whole.tables, again.tables, strict=True):
        for first, second in zip(one.rows, two.rows, strict=True):
            assert first.metrics == second.metrics
            assert first.to_best == second.to_best
            assert {name: entry.score for name, entry in first.columns.items()} == {
                name: entry.score for name, entry in second.columns.items()
            }
    bench({"planted": dataset}, plan, cells=tmp_path / "parts")
    assert len(Counting.fits) == 4


def test_more_seeds_and_attacks_add_to_what_there_is(dataset, tmp_path):
    Counting.fits.clear()
    plan = Plan({"counting": Counting(size=4)}, ["size"], (0,))
    bench({"planted": dataset}, plan, cells=tmp_path)
    bench({"planted": dataset}, replace(plan, seeds=(0, 1)), cells=tmp_path)
    assert Counting.fits == [0, 1]
    attacked = bench({"planted": dataset}, replace(plan, seeds=(0, 1), attacks=("int8",)), cells=tmp_path)
    assert Counting.fits == [0, 1, 0, 1]
    assert rows(attacked.tables[0])["counting"].columns["int8"].status == "ok"


def test_a_damaged_cell_is_measured_again(dataset, tmp_path):
    Counting.fits.clear()
    plan = Plan({"counting": Counting(size=4)}, ["size"], (0,))
    first = bench({"planted": dataset}, plan, cells=tmp_path)
    contents = (b"", b"[]", b'{"key": 1}', b"\xff")
    for file, content in zip(tmp_path.glob("*.json"), contents, strict=True):
        file.write_bytes(content)
    again = bench({"planted": dataset}, plan, cells=tmp_path)
    assert rows(again.tables[0])["counting"].metrics == rows(first.tables[0])["counting"].metrics
    assert len(Counting.fits) == 2


def test_whatever_a_result_depends_on_is_in_the_fingerprint(dataset):
    moved = ("train", *dataset.splits[1:])
    samples = (dataset.samples[0]._replace(hyperparameters={"rate": 9.0}), *dataset.samples[1:])
    others = [
        replace(dataset, splits=moved),
        replace(dataset, groups=("other", *dataset.groups[1:])),
        replace(dataset, samples=samples),
        replace(dataset, digest="other"),
        dataset.subset(range(79)),
    ]
    assert len({fingerprint(one) for one in (dataset, *others)}) == 6


def test_what_fails_is_tried_again(dataset, tmp_path):
    plan = Plan({"broken": Breaking()}, ["size"], (0,))
    bench({"planted": dataset}, plan, cells=tmp_path)
    assert not any("breaking" in file.read_text() for file in tmp_path.glob("*.json"))


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


LABELS = {
    "constant": [1.5] * 80,
    "one class": [True] * 80,
    "no value": [None] * 80,
    "not finite": [math.nan] * 80,
    "three": [1.0, 2.0, 3.0] + [None] * 77,
    "none tests": [None if i % 5 == 0 else float(i) for i in range(80)],
}


@pytest.mark.parametrize("name", list(LABELS))
def test_a_label_that_poses_no_task_is_one_clear_error_before_anything_is_fitted(dataset, name):
    labelled = replace(dataset, labels={name: LABELS[name]}, _inputs={})
    done = []
    with pytest.raises(LorascopeError) as caught:
        bench({"planted": labelled}, Plan({"ridge": small()}, [name], (0,)), done=done.append)
    assert caught.value.found
    assert not done
    # where nobody asked for it, it is left out with the reason, and where nothing is left that is the error
    assert askable(labelled)[1][name]
    with pytest.raises(PredictorError, match="no label of the zoo poses a task"):
        bench({"planted": labelled}, Plan({"ridge": small()}, None, (0,)))


def test_labels_that_pose_no_task_are_named_and_the_others_go_on(dataset):
    labelled = replace(dataset, labels={"size": dataset.labels["size"], **LABELS}, _inputs={})
    found = bench({"planted": labelled}, Plan({"ridge": small()}, None, (0,)))
    assert [table.target for table in found.tables] == ["size"]
    assert set(found.zoos[0].not_asked) == set(LABELS)


def test_labels_that_are_missing_or_not_finite_are_counted(dataset):
    spoiled = {0: None, 1: math.nan}
    values = [spoiled.get(i % 10, size) for i, size in enumerate(dataset.labels["size"])]
    labelled = replace(dataset, labels={"size": values}, _inputs={})
    [table] = bench({"planted": labelled}, Plan({"ridge": small()}, ["size"], (0,))).tables
    assert (table.unlabelled, table.taught + table.tested) == (16, 64)
    assert math.isfinite(rows(table)["ridge"].metrics["r2"].mean)
    facts = fit_predictor(labelled, "size", small()).facts
    assert facts["left_out"] == {"unlabelled": 8, "damaged": 0}


def test_a_test_split_of_one_class_has_no_score_and_says_so(dataset):
    values = [split != "test" and i % 2 == 0 for i, split in enumerate(dataset.splits)]
    labelled = replace(dataset, labels={"rare": values}, _inputs={})
    found = bench({"planted": labelled}, Plan({"ridge": small()}, ["rare"], (0,)))
    assert found.tables[0].best is None
    assert math.isnan(rows(found.tables[0])["ridge"].metrics["auroc"].mean)
    assert found.has_failed


def test_three_adapters_are_too_few():
    with pytest.raises(PredictorError, match="at least 12"):
        bench({"planted": planted_dataset(3)}, Plan({"ridge": small()}, ["size"], (0,)))


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
