"""Logistic regression: the same as on all columns, groups whole, and NumPy alone once fitted."""

import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lorascope.errors import PredictorError
from lorascope.predict import MODELS, Predictor, fit_predictor
from lorascope.predict.leave_one_out import Columns
from lorascope.predict.models.logistic import FOLDS, _folds, fit_logistic
from planted import planted_dataset


def planted(n=60, columns=90, seed=0):
    rng = np.random.default_rng(seed)
    groups = {"one": rng.standard_normal((n, columns)) + 3.0, "two": 0.1 * rng.standard_normal((n, 7))}
    logits = 20 * groups["two"][:, :2]
    return groups, (logits + rng.logistic(size=logits.shape) > 0).astype(float)


def test_it_is_the_logistic_regression_on_all_columns_and_left_out_means_left_out():
    groups, Y = planted()
    names = tuple(str(i // 4) for i in range(len(Y)))
    solution = fit_logistic(groups, Y, sample_groups=names)
    wide = np.concatenate(
        [
            Columns.of(groups[g]).standardise(groups[g]) * np.sqrt(w / groups[g].shape[1])
            for g, w in solution.weights.items()
        ],
        axis=1,
    )
    wide /= np.sqrt((wide**2).sum(axis=1).mean())
    folds = _folds(names)
    # a preconditioned gradient of 1e-4 at a Hessian near 1 leaves some 1e-4 of the coordinates
    for k in range(Y.shape[1]):
        direct = LogisticRegression(C=1 / solution.penalty, max_iter=5000, tol=1e-8)
        everything = direct.fit(wide, Y[:, k]).decision_function(wide)
        assert np.abs(solution.predict(groups)[:, k] - everything).max() < 2e-3
        for fold in range(FOLDS):
            inside = folds != fold
            apart = direct.fit(wide[inside], Y[inside, k]).decision_function(wide[~inside])
            assert np.abs(solution.left_out[~inside, k] - apart).max() < 2e-3


def test_groups_of_samples_stay_whole():
    names = tuple(str(i // 4) for i in range(60))
    folds = _folds(names)
    assert set(folds) == set(range(FOLDS))
    assert all(len(set(folds[np.asarray(names) == name])) == 1 for name in set(names))
    assert set(_folds(("a",) * 6)) == set(range(FOLDS))  # fewer groups than folds: each sample alone


def test_a_class_that_no_sample_or_every_sample_has_gets_its_share():
    groups, Y = planted()
    Y = np.concatenate([Y, np.zeros((60, 1)), np.ones((60, 1))], axis=1)
    logits = fit_logistic(groups, Y, sample_groups=tuple(map(str, range(60)))).predict(groups)
    assert np.allclose(logits[:, 2], np.log(0.5 / 60.5))
    assert np.allclose(logits[:, 3], np.log(60.5 / 0.5))


def test_constant_features_say_nothing():
    _, Y = planted()
    solution = fit_logistic({"x": np.ones((60, 4))}, Y, sample_groups=tuple(map(str, range(60))))
    assert np.ptp(solution.predict({"x": np.ones((5, 4))}), axis=0).max() < 1e-9


def test_numbers_are_refused_and_ridge_is_named():
    with pytest.raises(PredictorError, match=r"predicts classes.*\n.*fit ridge"):
        fit_predictor(planted_dataset(40), "size", MODELS["logistic"](size=4))


def test_a_fitted_one_predicts_with_numpy_alone(tmp_path, monkeypatch):
    dataset = planted_dataset(40)
    predictor = fit_predictor(dataset, "first", MODELS["logistic"](size=4))
    predictor.save(tmp_path / "p")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("sklearn", "scipy")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert Predictor.load(tmp_path / "p").predict(dataset.samples[:3]) == predictor.predict(dataset.samples[:3])
