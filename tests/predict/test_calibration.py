"""Probabilities mean what they say."""

import numpy as np
import pytest

from lorascope.predict.calibration import Calibration
from lorascope.predict.metrics import calibration_error
from lorascope.predict.targets import Target

REGRESSION = Target("t", "regression", (), 10.0, 2.0)


def test_values_come_in_the_unit_of_the_target():
    calibration = Calibration.fit(REGRESSION, np.zeros((9, 1)), np.ones((9, 1)))
    assert calibration.predict(REGRESSION, np.array([[1.5]])).tolist() == [[13.0]]


def test_probabilities_are_frequencies():
    rng = np.random.default_rng(1)
    target = Target("t", "binary", (0, 1))
    scores = rng.standard_normal((20_000, 1))
    truth = (rng.random((20_000, 1)) < 1 / (1 + np.exp(-(3 * scores - 1)))).astype(float)
    calibration = Calibration.fit(target, 0.01 * scores, truth)  # whatever the scale of the scores
    predicted = calibration.predict(target, 0.01 * scores)
    for low in np.arange(0.05, 0.95, 0.1):
        chosen = (predicted >= low) & (predicted < low + 0.1)
        assert truth[chosen].mean() == pytest.approx(predicted[chosen].mean(), abs=0.05)


@pytest.mark.parametrize("truth", [np.zeros((5, 1)), np.ones((5, 1))])
def test_a_class_that_never_varies_gets_its_frequency(truth):
    calibration = Calibration.fit(Target("t", "binary", (0, 1)), np.arange(5.0)[:, None], truth)
    predicted = calibration.predict(Target("t", "binary", (0, 1)), np.array([[100.0]]))
    assert predicted[0, 0] == pytest.approx(np.clip(truth[0, 0], 0.01, 0.99))


def test_a_score_that_points_the_wrong_way_is_not_turned_around():
    scores = np.linspace(-1, 1, 40)[:, None]
    calibration = Calibration.fit(Target("t", "binary", (0, 1)), scores, (scores < 0).astype(float))
    assert calibration.slope[0] == 0.0


def test_classes_sum_to_one():
    target = Target("t", "multi-class", ("a", "b", "c"))
    truth = np.eye(3)[np.arange(30) % 3]
    calibration = Calibration.fit(target, truth + 0.1, truth)
    assert calibration.predict(target, truth[:3]).sum(axis=1) == pytest.approx(1.0)


def test_the_calibration_error_is_that_of_the_frequencies():
    rng = np.random.default_rng(2)
    p = rng.random((20_000, 2))
    truth = (rng.random(p.shape) < p).astype(float)
    floor = np.sqrt(2 * 0.25 / (np.pi * 2000))  # of true probabilities, at most: the mean |error| of a bin's share
    assert calibration_error(truth, p) < floor
    shrunk = 0.5 + 0.5 * (p - 0.5)  # too timid: the mean over p of |p − shrunk| is 1/8
    assert calibration_error(truth, shrunk) == pytest.approx(0.125, abs=2 * floor)
