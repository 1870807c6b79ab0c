"""Closed-form leave-one-out against leaving each one out."""

import numpy as np
import pytest

from lorascope.predict.leave_one_out import Columns, fit_ridge


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    groups = {"a": rng.standard_normal((25, 4)), "b": 5 + 3 * rng.standard_normal((25, 40))}
    Y = groups["a"] @ rng.standard_normal((4, 2)) + 0.3 * rng.standard_normal((25, 2)) + 7
    return groups, Y


def test_left_out_predictions_are_those_of_a_fit_without_the_sample(problem):
    groups, Y = problem
    solution = fit_ridge(groups, Y)
    # the slow reference: with the standardisation, weights and penalty of the whole, refit without sample i
    Z = np.concatenate(
        [
            Columns.of(groups[name]).standardise(groups[name]) * np.sqrt(weight / groups[name].shape[1])
            for name, weight in solution.weights.items()
        ],
        axis=1,
    )
    penalty = solution.penalty * np.trace(Z @ Z.T) / len(Z)
    for i in range(len(Z)):
        rest = np.arange(len(Z)) != i
        X = np.column_stack([Z[rest], np.ones(rest.sum())])
        ridge = np.diag([penalty] * Z.shape[1] + [0.0])
        w = np.linalg.solve(X.T @ X + ridge, X.T @ Y[rest])
        assert np.allclose(np.append(Z[i], 1.0) @ w, solution.left_out[i], atol=1e-7)


def test_primal_coefficients_give_the_dual_solution(problem):
    groups, Y = problem
    solution = fit_ridge(groups, Y)
    kernel = sum(
        weight * (Z := Columns.of(groups[name]).standardise(groups[name])) @ Z.T / Z.shape[1]
        for name, weight in solution.weights.items()
    )
    penalty = solution.penalty * np.trace(kernel) / len(kernel)
    dual = np.linalg.solve(kernel + penalty * np.eye(len(kernel)), Y - Y.mean(0))
    assert np.allclose(solution.predict(groups), kernel @ dual + Y.mean(0), atol=1e-9)


def test_the_group_that_knows_gets_the_weight(problem):
    groups, Y = problem
    solution = fit_ridge(groups, Y)
    assert solution.weights["a"] > 0.9


def test_constant_columns_and_constant_groups_do_no_harm():
    X = np.column_stack([np.linspace(0, 1, 12), np.ones(12)])
    solution = fit_ridge({"x": X, "none": np.zeros((12, 3))}, X[:, :1] * 4)
    assert np.isfinite(solution.predict({"x": X, "none": np.zeros((12, 3))})).all()
    assert np.abs(solution.predict({"x": X, "none": np.zeros((12, 3))}) - X[:, :1] * 4).max() < 1e-2


def test_features_that_are_all_constant_predict_the_mean():
    Y = np.arange(6.0)[:, None]
    solution = fit_ridge({"none": np.ones((6, 2))}, Y)
    assert np.allclose(solution.predict({"none": np.ones((6, 2))}), 2.5)
