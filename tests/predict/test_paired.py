"""Weighted scores are those of the metrics, and intervals of differences hold what they should."""

import numpy as np
import pytest

from lorascope.predict.bench.paired import first_metric, paired_differences, weighted_scores
from lorascope.predict.metrics import measure
from lorascope.predict.targets import Target

TARGETS = [
    Target("t", "regression", (), 5.0, 2.0),
    Target("t", "binary", (0, 1)),
    Target("t", "multi-label", ("a", "b", "c")),
    Target("t", "multi-class", ("a", "b", "c")),
]


def sample(target, rng, n=40):
    """Truth and predictions, with ties."""
    if target.task == "regression":
        truth = 1e3 + rng.standard_normal((n, 1))  # a mean that a careless variance cancels with
        return truth, truth + rng.standard_normal((n, 1))
    truth = (rng.random((n, target.width)) < 0.4).astype(float)
    if target.task == "multi-class":
        truth = np.eye(3)[rng.integers(0, 3, n)]
    return truth, np.round(np.clip(0.3 * truth + rng.random(truth.shape), 0, 1), 1)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.task)
def test_weights_are_repetitions(target):
    rng = np.random.default_rng(0)
    truth, predicted = sample(target, rng)
    weights = rng.integers(0, 4, (6, len(truth)))
    weights[0] = 1
    found = weighted_scores(target, truth, predicted, weights.astype(float))
    for row, score in zip(weights, found, strict=True):
        again = measure(target, np.repeat(truth, row, axis=0), np.repeat(predicted, row, axis=0))
        assert score == pytest.approx(again[first_metric(target.task)], abs=1e-9)


def test_a_draw_that_defines_no_score_is_nan():
    binary, regression = Target("t", "binary", (0, 1)), Target("t", "regression")
    assert np.isnan(weighted_scores(binary, np.ones((3, 1)), np.ones((3, 1)), np.ones((1, 3))))
    alone = np.array([[0.0, 2.0, 0.0]])
    assert np.isnan(weighted_scores(regression, np.arange(3.0)[:, None], np.ones((3, 1)), alone))


def test_the_best_differs_from_itself_by_nothing_and_a_clear_loser_by_an_interval_below_zero():
    rng = np.random.default_rng(1)
    truth = rng.standard_normal((80, 1))
    good, bad = (truth + size * rng.standard_normal((80, 1)) for size in (0.1, 1.0))
    target, groups = TARGETS[0], [str(i) for i in range(80)]
    best, other = paired_differences(target, truth, [[good], [bad]], 0, groups)
    assert best == (0.0, 0.0, 0.0)
    assert other.low < other.difference < other.high < 0
    assert paired_differences(target, truth, [[good], [bad]], 0, groups) == [best, other]  # seeded


def test_two_models_that_differ_by_luck_are_rarely_told_apart():
    rng = np.random.default_rng(2)
    told, tries = 0, 60
    for _ in range(tries):
        truth = rng.standard_normal((60, 1))
        models = [[truth + 0.5 * rng.standard_normal((60, 1))] for _ in range(2)]
        _, other = paired_differences(TARGETS[0], truth, models, 0, [str(i) for i in range(60)], draws=300)
        told += not other.low <= 0 <= other.high
    # 5 % by promise; four standard deviations of a binomial above that, and the percentile interval is a little short
    assert told <= tries * (0.07 + 4 * np.sqrt(0.05 * 0.95 / tries))


def test_copies_of_a_sample_in_one_group_add_no_certainty():
    rng = np.random.default_rng(3)
    truth = rng.standard_normal((50, 1))
    models = [truth + size * rng.standard_normal((50, 1)) for size in (0.4, 0.6)]
    groups = [str(i) for i in range(50)]
    once = paired_differences(TARGETS[0], truth, [[one] for one in models], 0, groups)[1]
    copied = [[np.repeat(one, 4, axis=0)] for one in models]
    again = paired_differences(TARGETS[0], np.repeat(truth, 4, axis=0), copied, 0, list(np.repeat(groups, 4)))[1]
    assert again == pytest.approx(once, abs=1e-9)


def test_a_single_group_gives_no_interval():
    truth = np.arange(5.0)[:, None]
    _, other = paired_differences(TARGETS[0], truth, [[truth], [truth + 1]], 0, ["g"] * 5)
    assert other.difference == pytest.approx(-0.5)
    assert np.isnan(other.low)
    assert np.isnan(other.high)
