"""The strategies give what they state, and reach every awkward kind."""

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings

from lorascope.testing import adapters, factor_pairs, product_condition, tolerance, updates
from lorascope.testing.strategies import KINDS

WITHOUT_SHRINKING = settings(phases=[Phase.generate], max_examples=1000)


def reached(strategy, predicate):
    """An example for which the predicate holds; an error where there is none."""
    return find(strategy, predicate, settings=WITHOUT_SHRINKING)


def condition(factor):
    values = np.linalg.svd(factor, compute_uv=False)
    kept = values[values > 1e-12 * values[0]]
    return kept[0] / kept[-1] if len(kept) else 1.0


@given(pair=factor_pairs())
def test_ranks_and_conditions_are_in_range(pair):
    B, A = pair
    assert 1 <= B.shape[1] == A.shape[0] <= 16
    assert B.dtype == A.dtype == np.float64
    assert condition(B) <= 1.0001e4 and condition(A) <= 1.0001e4


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_what_it_says(kind):
    @settings(max_examples=20)
    @given(pair=factor_pairs(kinds=(kind,), shape=(8, 6), ranks=(3, 9)))
    def check(pair):
        B, A = pair
        S = np.linalg.svd(B @ A, compute_uv=False)
        directions = int((1e-7 * S[0] < S).sum())
        full = min(6, B.shape[1])
        assert directions == {"zero B": 0, "zero A": 0}.get(kind, directions)
        if kind in ("plain", "repeated", "nearly repeated"):
            assert directions == full
        if kind == "deficient":
            assert 1 <= directions < full
        if kind == "repeated":
            np.testing.assert_allclose(S[:directions], S[0], rtol=1e-10)
        if kind == "nearly repeated":
            np.testing.assert_allclose(S[:directions], S[0], rtol=2e-9)
        assert B.any() == (kind != "zero B") and A.any() == (kind != "zero A")

    check()


def test_float32_and_ranks_beyond_both_sides_are_reached():
    B, A = reached(factor_pairs(dtype=np.float32, shape=(3, 2)), lambda pair: pair[0].shape[1] > 3)
    assert B.dtype == A.dtype == np.float32
    assert reached(factor_pairs(), lambda pair: condition(pair[0]) > 5e3)


def test_updates_have_scales_of_both_signs_and_adapters_mixed_ranks():
    assert reached(updates(), lambda update: update.scale < 0)
    assert reached(updates(), lambda update: update.scale == 0)
    assert reached(adapters(), lambda adapter: len({update.rank for update in adapter.values()}) > 1)
    assert reached(adapters(), lambda adapter: len({update.shape for update in adapter.values()}) > 1)


@given(pair=factor_pairs(kinds=("plain",), ranks=(1, 5), shape=(8, 8)))
def test_the_condition_of_the_product_is_bounded_by_that_of_a_factor(pair):
    B, A = pair
    bound = np.sqrt(B.shape[1]) * min(condition(B), condition(A))
    assert 1 - 1e-12 <= product_condition(B, A) <= bound * 1.001
    assert tolerance(B, A, gauge_condition=10.0) == pytest.approx(10 * tolerance(B, A))
