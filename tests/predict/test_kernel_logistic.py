"""Logistic regression with a kernel: the optimum, and how near its left-out scores are to fits without the group."""

import numpy as np
import pytest

from lorascope.predict.kernel_learning import CONSTANT
from lorascope.predict.kernel_levels import Bundle, weights_by_level
from lorascope.predict.kernel_logistic import PENALTIES, best_penalty, fit_logistic
from lorascope.predict.kernel_machine import Part
from lorascope.predict.kernel_solution import Learning, crossed, solved
from lorascope.predict.leave_one_out import blocks_of_groups


def problem(n=60, seed=0, noise=1.0):
    """A kernel of six features that tell two classes, with noise."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 6))
    score = X @ np.array([[1.5, 0.0], [-1.0, 0.5], [0.0, 1.0], [0, 0], [0, 0], [0, 0]])
    Y = (score + noise * rng.standard_normal(score.shape) > 0).astype(float)
    return X @ X.T / 6 + CONSTANT, Y


def sigmoid(f):
    return 1 / (1 + np.exp(-f))


def test_at_the_optimum_a_is_the_residual_over_the_penalty():
    K, Y = problem()
    found = fit_logistic(K, Y, 0.3, [])
    # one Newton step from within 1e-6 of the optimum in every score: its square, times what K and λ make of it
    assert np.allclose(found.a, (Y - sigmoid(K @ found.a)) / 0.3, rtol=0, atol=1e-9)


@pytest.mark.parametrize("groups", [None, [f"g{i // 3}" for i in range(60)]])
def test_left_out_scores_are_near_those_of_fits_without_the_group(groups):
    K, Y = problem()
    blocks = blocks_of_groups(groups or [str(i) for i in range(60)])
    found = fit_logistic(K, Y, 0.5, blocks)
    names = np.asarray(groups or [str(i) for i in range(60)])
    exact = np.zeros_like(Y)
    for name in sorted(set(names)):
        rest, own = names != name, names == name
        exact[own] = K[np.ix_(own, rest)] @ fit_logistic(K[np.ix_(rest, rest)], Y[rest], 0.5, []).a
    # to first order: a tenth of what leaving out changes at all
    change = np.sqrt(((K @ found.a - exact) ** 2).mean())
    assert np.sqrt(((found.left_out - exact) ** 2).mean()) < 0.1 * change
    assert found.loss == pytest.approx(float((np.logaddexp(0, exact) - Y * exact).mean()), rel=0.02)


def test_the_penalty_is_larger_where_there_is_more_noise():
    chosen = [best_penalty(*problem(noise=noise), [], 1.0) for noise in (0.1, 8.0)]
    assert chosen[0] < chosen[1]
    assert all(penalty in PENALTIES for penalty in chosen)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_class_alone_and_classes_that_are_told_for_certain_give_finite_scores(value):
    K, Y = problem(noise=0.0)
    Y[:, 1] = value
    found = fit_logistic(K, Y, PENALTIES[0], [])
    assert np.isfinite(found.a).all() and np.isfinite(found.left_out).all()
    assert ((K @ found.a)[:, 0] > 0).tolist() == (Y[:, 0] > 0.5).tolist()
    assert ((found.left_out[:, 1] > 0) == (value > 0.5)).all()


def test_a_start_elsewhere_leads_to_the_same_place():
    K, Y = problem()
    start = np.random.default_rng(1).standard_normal(Y.shape)
    one, other = fit_logistic(K, Y, 0.1, []), fit_logistic(K, Y, 0.1, [], start)
    assert np.allclose(K @ one.a, K @ other.a, rtol=0, atol=1e-6)


LEVELS = [[""]]


def bundles_of(grams, names):
    parts = [[Part(name, -1, 1.0)] for name in names]
    return [Bundle(part, gram.astype(np.float32)) for part, gram in zip(parts, grams, strict=True)]


def test_crossed_residuals_are_as_large_as_those_of_new_samples_and_plain_ones_smaller():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((24, 600, 3))  # 24 kernels, of which the target knows none
    grams = np.stack([X @ X.T / 3 for X in features])
    Y = rng.standard_normal((600, 1))
    few = slice(0, 60)
    Y_few, groups = Y[few] - Y[few].mean(), [str(i) for i in range(60)]
    names = [f"kernel {i}" for i in range(24)]
    bundles = bundles_of(grams[:, few, few], names)
    [anew] = crossed(lambda taught: bundles, [Learning(LEVELS, frozenset(names))], Y_few, groups, 0)
    [level] = weights_by_level(bundles, Y_few, [], LEVELS)
    K = np.add.reduce([w * gram for w, gram in zip(level.weights.values(), grams, strict=True)])
    solution = solved(K[few, few], Y_few, level.weights, level.noise, [])
    new = Y[60:] - Y[few].mean() - (K[60:, few] + CONSTANT) @ solution.a
    plain, other = ((Y_few - values) ** 2 for values in (solution.left_out, anew))
    assert plain.mean() < other.mean()
    assert other.mean() == pytest.approx(float((new**2).mean()), rel=4 * np.sqrt(2 / 60))  # four sd of a mean square


def test_too_few_groups_are_not_parted():
    K, Y = problem(n=20)
    learning = Learning(LEVELS, frozenset(["one"]))
    assert crossed(lambda taught: bundles_of([K], ["one"]), [learning], Y, [str(i) for i in range(20)], 0) == [None]
