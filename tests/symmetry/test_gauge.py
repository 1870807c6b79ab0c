"""The group action: a left action that leaves ΔW alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.symmetry import act, pad_rank, random_gauge
from lorascope.testing import factor_pairs, tolerance

CONDITION = 100.0


@given(pair=factor_pairs(), seed=st.integers(0, 2**32 - 1))
def test_the_action_is_a_left_action_and_keeps_the_product(library, pair, seed):
    B, A = pair
    rng = np.random.default_rng(seed)
    M, N = random_gauge(B.shape[1], condition=CONDITION, batch=(2,), rng=rng)
    sizes = np.linalg.norm(B) * np.linalg.norm(A)
    allowed = tolerance(np.eye(1), np.eye(1), gauge_condition=CONDITION**2)
    B, A, M, N = map(library, (B, A, M, N))

    stepwise = act(N, *act(M, B, A))
    at_once = act(N @ M, B, A)

    for one, other in zip(stepwise, at_once, strict=True):
        reference = np.asarray(other)
        np.testing.assert_allclose(np.asarray(one), reference, rtol=0, atol=allowed * np.abs(reference).max())
    np.testing.assert_allclose(np.asarray(stepwise[0] @ stepwise[1]), np.asarray(B @ A), rtol=0, atol=allowed * sizes)


@given(pair=factor_pairs())
def test_the_identity_acts_trivially(library, pair):
    B, A = map(library, pair)
    same_B, same_A = act(library(np.eye(B.shape[1])), B, A)
    assert np.array_equal(same_B, B) and np.array_equal(same_A, A)


def test_each_site_has_its_own_gauge(library):
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 3, 4, 6))
    M = random_gauge(4, batch=(2, 3), rng=rng)
    together_B, together_A = act(library(M), library(B), library(A))
    for i in range(2):
        for j in range(3):
            alone_B, alone_A = act(M[i, j], B[i, j], A[i, j])
            np.testing.assert_allclose(np.asarray(together_B)[i, j], alone_B, rtol=1e-12)
            np.testing.assert_allclose(np.asarray(together_A)[i, j], alone_A, rtol=1e-12)


@pytest.mark.parametrize("rank", [2, 5, 16])
@pytest.mark.parametrize("condition", [1.0, 100.0, 1e4])
def test_random_gauges_have_the_stated_condition(rank, condition):
    gauges = random_gauge(rank, condition=condition, batch=(3,), rng=np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.cond(gauges), condition, rtol=1e-9)


def test_random_gauges_of_rank_one_have_both_signs_and_stay_in_range():
    gauges = random_gauge(1, condition=100.0, batch=(200,), rng=np.random.default_rng(0)).ravel()
    assert {-1.0, 1.0} == set(np.sign(gauges))
    assert np.abs(gauges).min() >= 0.1 and np.abs(gauges).max() <= 10.0


def test_random_gauges_come_from_their_generator():
    first, again = (random_gauge(4, rng=np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, again)


@given(pair=factor_pairs(), more=st.integers(0, 5))
def test_padding_appends_zeros(library, pair, more):
    B, A = pair
    rank = B.shape[1]
    padded_B, padded_A = map(np.asarray, pad_rank(library(B), library(A), rank + more))
    assert np.array_equal(padded_B[:, :rank], B) and not padded_B[:, rank:].any()
    assert np.array_equal(padded_A[:rank], A) and not padded_A[rank:].any()


def test_padding_refuses_a_smaller_rank(library):
    with pytest.raises(ValueError, match="cannot pad rank 4 to the smaller 3"):
        pad_rank(library(np.ones((2, 4))), library(np.ones((4, 2))), 3)


def test_nothing_can_be_padded_and_acted_on(library):
    B, A = library(np.zeros((2, 5, 0))), library(np.zeros((2, 0, 4)))
    M = library(random_gauge(0, batch=(2,), rng=np.random.default_rng(0)))
    assert [tuple(X.shape) for X in act(M, B, A)] == [(2, 5, 0), (2, 0, 4)]
    wide, tall = pad_rank(B, A, 3)
    assert (tuple(wide.shape), tuple(tall.shape)) == ((2, 5, 3), (2, 3, 4))
    assert not np.asarray(wide).any() and not np.asarray(tall).any()
