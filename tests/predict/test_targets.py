"""What task a column poses, and its numbers."""

import numpy as np
import pytest

from lorascope.errors import PredictorError
from lorascope.predict.metrics import mean_auroc, measure
from lorascope.predict.targets import Target


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        ([0.5, 1.5, 2.5], "regression", ()),
        ([16, 100, 400], "regression", ()),
        ([0, 1, 1, 0], "binary", (0, 1)),
        ([True, False], "binary", (False, True)),
        (["a", "b", "a"], "binary", ("a", "b")),
        (["a", "b", "c"], "multi-class", ("a", "b", "c")),
        ([[1], [2, 3], []], "multi-label", (1, 2, 3)),
        ([["x"], ["y"]], "multi-label", ("x", "y")),
    ],
)
def test_the_task_is_found_from_the_column(values, task, classes):
    target = Target.of("t", values)
    assert (target.task, target.classes) == (task, classes)
    assert target.encode(values).shape == (len(values), target.width)


def test_a_task_can_be_asked_for():
    assert Target.of("t", [3, 7, 9], "multi-class").classes == (3, 7, 9)


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([], None),
        ([1.0, 1.0], None),
        (["a", "a"], None),
        ([1, 2], "multi-label"),
        ([[1], [2]], "regression"),
        (["a", "b"], "regression"),
        ([1, 2, 3], "binary"),
        ([1, 2], "guess"),
    ],
)
def test_columns_that_pose_no_task_are_refused(values, task):
    with pytest.raises(PredictorError, match="t: "):
        Target.of("t", values, task)


def test_encoding():
    assert Target.of("t", ["no", "yes"]).encode(["yes", "no"]).tolist() == [[1.0], [0.0]]
    assert Target.of("t", [[1, 2], [3]]).encode([[3, 1], []]).tolist() == [[1, 0, 1], [0, 0, 0]]
    regression = Target.of("t", [1.0, 3.0])
    assert regression.encode([1.0, 3.0, 5.0]).ravel().tolist() == [-1.0, 1.0, 3.0]


def test_a_label_that_was_never_fitted_is_an_error():
    with pytest.raises(PredictorError, match=r"not among those.*found z"):
        Target.of("t", ["a", "b"]).encode(["z"])


def test_metrics_of_regression_have_their_true_names():
    target = Target.of("t", [0.5, 1.0])
    y = np.array([[1.0], [2.0], [3.0], [4.0]])
    # monotone but far off: rank correlation is perfect, the coefficient of determination is not
    metrics = measure(target, y, y**3)
    assert metrics["kendall_tau"] == pytest.approx(1.0)
    assert metrics["r2"] == pytest.approx(1 - ((y - y**3) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    assert metrics["mae"] == pytest.approx(np.abs(y - y**3).mean())


def test_metrics_that_are_not_defined_are_nan():
    target = Target.of("t", [0.5, 1.0])
    assert np.isnan(measure(target, np.ones((3, 1)), np.ones((3, 1)))["r2"])
    assert np.isnan(mean_auroc(np.ones((3, 1)), np.ones((3, 1))))


def test_accuracy_of_many_labels_is_the_mean_over_labels():
    target = Target.of("t", [[0], [1]])
    truth = np.array([[1.0, 0.0], [0.0, 1.0]])
    metrics = measure(target, truth, np.array([[0.9, 0.6], [0.2, 0.7]]))
    assert metrics["accuracy"] == 0.75
    assert metrics["auroc"] == 1.0
    assert metrics["brier"] == pytest.approx(np.mean([0.01, 0.36, 0.04, 0.09]))
