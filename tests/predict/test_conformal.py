"""Quantiles and p-values hold whatever the distribution, also where samples come in groups."""

import math

import numpy as np
import pytest

from lorascope.errors import PredictorError
from lorascope.predict.conformal import Conformal

DRAWS = 400


def mean_and_error(shares):
    return np.mean(shares), np.std(shares) / math.sqrt(len(shares))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_a_quantile_holds_the_stated_share_of_new_values(level):
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(DRAWS):
        conformal = Conformal.of(np.abs(rng.standard_t(2, size=80)))
        shares.append(np.mean(np.abs(rng.standard_t(2, size=200)) <= conformal.quantile(level)))
    mean, error = mean_and_error(shares)
    assert level - 4 * error <= mean <= level + 1 / 81 + 4 * error


def grouped(rng, groups, largest):
    """Values that are large or small by group, and groups of 1 or of ``largest`` members: the small ones are many."""
    sizes = np.where(rng.random(groups) < 0.5, 1, largest)
    unit = np.where(sizes == 1, 3.0, 1.0) * np.exp(rng.standard_normal(groups))
    names = np.repeat(np.arange(groups), sizes)
    return np.repeat(unit, sizes) * np.abs(rng.standard_normal(len(names))), names


def test_it_holds_for_a_member_of_a_new_group_where_counting_members_would_not():
    rng = np.random.default_rng(1)
    by_group, by_member = [], []
    for _ in range(DRAWS):
        values, names = grouped(rng, 60, 20)
        new, new_names = grouped(rng, 60, 20)
        weights = 1 / np.bincount(new_names)[new_names]
        for shares, conformal in ((by_group, Conformal.of(values, names)), (by_member, Conformal.of(values))):
            shares.append(np.average(new <= conformal.quantile(0.9), weights=weights))
    mean, error = mean_and_error(by_group)
    assert 0.9 - 4 * error <= mean <= 0.9 + 1 / 61 + 4 * error
    assert np.mean(by_member) < 0.88


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_p_values_are_no_smaller_than_they_say(alpha):
    rng = np.random.default_rng(2)
    shares = [
        np.mean(Conformal.of(rng.standard_normal(120)).p_values(rng.standard_normal(500)) <= alpha)
        for _ in range(DRAWS)
    ]
    mean, error = mean_and_error(shares)
    assert alpha - 1 / 121 - 4 * error <= mean <= alpha + 4 * error


def test_p_values_go_on_beyond_the_largest_value():
    conformal = Conformal.of(np.random.default_rng(3).exponential(size=40))
    largest = conformal.values[-1]
    p = conformal.p_values(largest + np.array([0.0, 1e-9, 1.0, 10.0, 1e9]))
    assert p[0] == pytest.approx(2 / 41)
    assert p[1] == pytest.approx(1 / 41)
    assert np.all(np.diff(p) < 0)
    assert p[3] < 1e-4


def test_too_few_samples_promise_nothing():
    assert Conformal.of(np.ones(8)).quantile(0.9) == math.inf
    assert Conformal.of(np.ones(9)).quantile(0.9) == 1.0
    assert Conformal.of(np.ones(90), np.arange(90) % 8).quantile(0.9) == math.inf
    assert Conformal.of([]).quantile(0.9) == math.inf
    assert Conformal.of([]).p_values(np.ones(2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, 90.0, math.nan])
def test_a_level_is_a_share(level):
    with pytest.raises(PredictorError, match="between 0 and 1"):
        Conformal.of(np.ones(20)).quantile(level)
