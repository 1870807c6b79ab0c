"""The intervals and sets that a predictor issues hold their share of truths, at any level, for all members together."""

from dataclasses import replace

import numpy as np
import pytest

from lorascope.errors import PredictorError
from lorascope.predict import MODELS, fit_predictor
from lorascope.predict.calibration import Calibration
from lorascope.predict.dataset import rows_of
from lorascope.predict.fitting import fit_member
from lorascope.predict.intervals import Trained, calibrate, is_in_set, measure_intervals
from lorascope.predict.leave_one_out import fit_ridge
from lorascope.predict.model import Split
from lorascope.predict.models.ridge import FittedRidge
from lorascope.predict.targets import Target
from planted import planted_dataset

REGRESSION = Target("t", "regression", (), 0.0, 1.0)


class Uneven:
    """Says 0 of everything, and knows how wrong it is."""

    def __init__(self, spreads, truth, *, tells=True):
        self.calibration = (np.zeros_like(truth), truth)
        if tells:
            self.calibration_spreads = spreads
            self.scores_and_spreads = lambda inputs: (self.scores(inputs), inputs["spread"])

    def scores(self, inputs):
        return np.zeros((len(inputs["spread"]), 1))


def trained(fitted, inputs, truth, held=0, *, is_left_out=True):
    calibration = Calibration.fit(REGRESSION, *fitted.calibration)
    train, validation = (
        Split({name: x[part] for name, x in inputs.items()}, truth[part], ("",) * len(truth[part]))
        for part in (slice(0, len(truth) - held), slice(len(truth) - held, None))
    )
    taught, rest = np.split(np.arange(len(truth)), [len(truth) - held])
    return Trained(fitted, calibration, train, validation, taught, rest, is_left_out)


def test_intervals_are_in_proportion_to_the_spread_that_a_model_knows():
    rng = np.random.default_rng(0)
    by_part = {True: [], False: []}
    for _ in range(60):
        spreads = np.where(rng.random(200) < 0.5, 0.1, 3.0)
        truth = (spreads * rng.standard_normal(200))[:, None]
        for tells in (True, False):
            fitted = Uneven(spreads, truth, tells=tells)
            conformal = calibrate(REGRESSION, [trained(fitted, {"spread": spreads}, truth)], truth, range(200))
            own = np.where(rng.random(400) < 0.5, 0.1, 3.0)
            new = own * rng.standard_normal(400)
            half = conformal.quantile(0.9) * (own if tells else 1.0)
            held = np.abs(new) <= half
            by_part[tells].append([held[own < 1].mean(), held[own > 1].mean()])
    assert np.mean(by_part[True], axis=0) == pytest.approx([0.9, 0.9], abs=0.02)
    assert np.mean(by_part[False], axis=0) == pytest.approx([1.0, 0.8], abs=0.02)  # right in the mean alone


@pytest.mark.parametrize("members", [1, 4])
def test_intervals_of_ridges_hold_for_the_mean_of_the_members(members):
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(60):
        X = rng.standard_normal((160, 30))
        truth = X[:, :3].sum(axis=1, keepdims=True) + rng.standard_t(3, size=(160, 1))
        parts = []
        for member in range(members):
            order = np.random.default_rng(member).permutation(60)
            inside, outside = np.sort(order[:50]), np.sort(order[50:])
            solution = fit_ridge({"x": X[inside]}, truth[inside])
            fitted = FittedRidge(solution, truth[inside])
            splits = [Split({"x": X[part]}, truth[part], ("",) * len(part)) for part in (inside, outside)]
            calibration = Calibration.fit(REGRESSION, *fitted.calibration)
            parts.append(Trained(fitted, calibration, *splits, inside, outside, is_left_out=True))
        half = calibrate(REGRESSION, parts, truth[:60], range(60)).quantile(0.9)
        values = np.mean([part.fitted.scores({"x": X[60:]}) for part in parts], axis=0)
        shares.append(np.mean(np.abs(values - truth[60:]) <= half))
    assert np.mean(shares) == pytest.approx(0.9, abs=0.02)


def test_held_samples_count_and_those_that_steered_do_not():
    truth = np.arange(20.0)[:, None]
    left_out = Uneven(np.ones(12), truth[:12], tells=False)
    conformal = calibrate(REGRESSION, [trained(left_out, {"spread": np.ones(20)}, truth, held=8)], truth, range(20))
    assert conformal.values.tolist() == truth[:, 0].tolist()
    steered = Uneven(np.ones(12), truth[:12], tells=False)  # by samples whose targets happen to be those of training
    member = trained(steered, {"spread": np.ones(20)}, truth, held=8, is_left_out=False)
    assert calibrate(REGRESSION, [member], truth, range(20)).values.tolist() == truth[12:, 0].tolist()


def test_networks_calibrate_on_samples_that_neither_trained_nor_stopped_them(monkeypatch):
    seen = []
    fit = MODELS["svd"].fit

    def spying(self, train, validation, *rest, **named):
        seen.append({*train.groups, *validation.groups})
        return fit(self, train, validation, *rest, **named)

    monkeypatch.setattr(MODELS["svd"], "fit", spying)
    dataset = planted_dataset(40)
    predictor = fit_predictor(dataset, "size", MODELS["svd"](epochs=1, hidden=8), seeds=(0, 1))
    everything = {dataset.groups[i] for i in dataset.where("train", "validation")}
    unseen = [everything - groups for groups in seen]
    assert all(unseen)
    assert len(predictor.intervals.values) == len(set.union(*unseen))


def test_samples_that_stopped_a_network_are_not_taken_for_left_out_ones_where_their_targets_are_alike():
    dataset = planted_dataset(40)
    inputs = MODELS["svd"]().inputs(dataset.samples, dataset.structure(range(40)))
    truth = np.tile([[0.0], [1.0]], (20, 1))
    groups = ["one"] * 20 + ["two"] * 20
    target, structure = Target("t", "binary", ("no", "yes")), dataset.structure(range(40))
    _, member = fit_member(MODELS["svd"](epochs=1, hidden=8), inputs, truth, groups, target, structure, seed=0)
    assert np.array_equal(member.fitted.calibration[1], member.train.targets)
    assert len(calibrate(target, [member], truth, groups).values) == len(member.held_places) == 20


def test_a_set_holds_the_class_and_is_never_empty():
    target = Target("t", "multi-class", ("a", "b", "c"))
    assert is_in_set(target, np.array([0.7, 0.2, 0.1]), 0.8).tolist() == [True, True, False]
    assert is_in_set(target, np.array([0.4, 0.3, 0.3]), 0.1).tolist() == [True, False, False]
    binary = Target("t", "binary", ("no", "yes"))
    assert is_in_set(binary, np.array([0.3]), 0.7 + 1e-9).tolist() == [True, True]
    assert is_in_set(binary, np.array([0.3]), 0.6).tolist() == [True, False]


@pytest.mark.parametrize("classes", [2, 3])
def test_sets_hold_their_share_of_classes(classes):
    rng = np.random.default_rng(classes)
    names = tuple("abc"[:classes])
    target = Target("t", "binary" if classes == 2 else "multi-class", names)
    shares, sizes = [], []
    for _ in range(60):
        logits = 2 * rng.standard_normal((400, classes))
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        truth = np.stack([rng.multinomial(1, row) for row in p]).astype(float)
        if classes == 2:
            p, truth = p[:, 1:], truth[:, 1:]

        class Known:
            calibration = (p[:200], truth[:200])

        plain = Calibration(np.ones(truth.shape[1]), np.zeros(truth.shape[1]))
        scores = np.log(p[:200] / (1 - p[:200]))
        Known.calibration = (scores, truth[:200])
        everything = Split({}, truth[:200], ())
        nothing = Split({}, truth[:0], ())
        member = Trained(Known(), plain, everything, nothing, np.arange(200), np.arange(0), is_left_out=True)
        conformal = calibrate(target, [member], truth[:200], range(200))
        values = plain.predict(target, np.log(p[200:] / (1 - p[200:])))
        measured = measure_intervals(target, conformal, values, truth[200:], np.ones(200))
        shares.append(measured["coverage_90"])
        sizes.append(measured["set_size_90"])
    assert np.mean(shares) == pytest.approx(0.9, abs=0.02)
    assert 1 < np.mean(sizes) < classes


def test_a_predictor_issues_what_its_metrics_measure():
    dataset = planted_dataset(60)
    predictor = fit_predictor(dataset, "size", MODELS["ridge"](features=("log-norm",)), seeds=(0, 1, 2))
    test = dataset.where("test")
    truth = [dataset.labels["size"][i] for i in test]
    inputs = rows_of(dataset.inputs(predictor.model, predictor.structure), test)
    metrics = predictor.evaluate(inputs, truth).metrics
    said = predictor.predict([dataset.samples[i] for i in test])
    held = [low <= value <= high for value, (low, high) in zip(truth, (one.interval for one in said), strict=True)]
    assert metrics["coverage_90"]["mean"] == np.mean(held)
    assert metrics["width_90"]["mean"] == pytest.approx(np.mean([one.interval[1] - one.interval[0] for one in said]))
    [narrow], [wide] = (predictor.predict(dataset.samples[:1], level=level) for level in (0.5, 0.95))
    assert wide.interval[0] < narrow.interval[0] < narrow.value < narrow.interval[1] < wide.interval[1]
    assert (narrow.level, wide.level) == (0.5, 0.95)
    assert predictor.predict(dataset.samples[:1], level=0.999)[0].interval is None
    with pytest.raises(PredictorError, match="between 0 and 1"):
        predictor.predict(dataset.samples[:1], level=90)


def test_the_sets_of_a_predictor_are_of_its_classes():
    dataset = planted_dataset(60)
    for name in ("first", "kind"):
        predictor = fit_predictor(dataset, name, MODELS["ridge"](size=4))
        for one in predictor.predict(dataset.samples[:10]):
            assert one.value in one.classes
            assert set(one.classes) <= set(predictor.target.classes)
    many = fit_predictor(dataset, "classes", MODELS["ridge"](size=4))
    assert many.intervals is None
    assert many.predict(dataset.samples[:1])[0].classes is None


def test_copies_of_one_training_adapter_do_not_narrow_intervals():
    # 8 groups of many members promise no more than 8 samples would
    dataset = planted_dataset(60)
    few = replace(dataset, groups=tuple(f"group-{i % 8}" for i in range(60)), splits=("train",) * 60)
    predictor = fit_predictor(few, "size", MODELS["ridge"](size=4))
    assert predictor.predict(dataset.samples[:1])[0].interval is None
    assert predictor.predict(dataset.samples[:1], level=0.8)[0].interval is not None
