"""What a bench asks: which adapters teach and which test, labels that pose no task, ranges never trained on."""

import math
from dataclasses import replace

import numpy as np
import pytest

from benched import rows, small
from lorascope.errors import LorascopeError, PredictorError
from lorascope.predict import fit_predictor
from lorascope.predict.bench import Plan, bench
from lorascope.predict.bench.question import Question, Structures, askable, range_hyperparameter
from lorascope.report.bench import bench_as_markdown
from planted import planted_dataset


@pytest.fixture(scope="module")
def dataset():
    return planted_dataset(80)


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
    assert rows(found.tables[0])["ridge"].undefined == {"auroc": "all adapters are of one class"}
    assert "auroc is not defined: all adapters are of one class" in bench_as_markdown(found)
    assert found.has_failed


def test_three_adapters_are_too_few():
    with pytest.raises(PredictorError, match="at least 12"):
        bench({"planted": planted_dataset(3)}, Plan({"ridge": small()}, ["size"], (0,)))
