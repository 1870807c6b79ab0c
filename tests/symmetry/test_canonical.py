"""Canonical forms: constant on the fibres of ΔW up to their stabiliser, and no further."""

import numpy as np
import pytest
from hypothesis import given

from lorascope.symmetry import act, balance, numerical_rank, random_gauge, thin_svd
from lorascope.testing import CONSTANT, assert_invariant, factor_pairs, tolerance

UNIT = np.finfo(np.float64).eps


def with_spectrum(S, *, out=9, in_=7, rank=None, condition=100.0, seed=0):
    """Factors of a ΔW of stated singular values in a random gauge, and its left singular vectors."""
    rng = np.random.default_rng(seed)
    S = np.asarray(S, dtype=np.float64)
    rank = rank or len(S)
    U = np.linalg.qr(rng.standard_normal((out, len(S))))[0]
    V = np.linalg.qr(rng.standard_normal((in_, len(S))))[0]
    B, A = np.zeros((out, rank)), np.zeros((rank, in_))
    B[:, : len(S)], A[: len(S)] = U * np.sqrt(S), (V * np.sqrt(S)).T
    return *act(random_gauge(rank, condition=condition, rng=rng), B, A), U


@given(pair=factor_pairs())
def test_thin_svd_agrees_with_the_dense_one(library, pair):
    B, A = pair
    U, S, Vh = map(np.asarray, thin_svd(library(B), library(A), scale=-2.0))
    dense = -2.0 * (B @ A)
    k = min(*dense.shape, B.shape[1])
    atol = 2 * CONSTANT * UNIT * np.linalg.norm(B) * np.linalg.norm(A)
    assert (U.shape, S.shape, Vh.shape) == ((len(B), k), (k,), (k, A.shape[1]))
    np.testing.assert_allclose(S, np.linalg.svd(dense, compute_uv=False)[:k], rtol=0, atol=atol)
    np.testing.assert_allclose(U * S @ Vh, dense, rtol=0, atol=atol)
    np.testing.assert_allclose(U.T @ U, np.eye(k), atol=CONSTANT * UNIT)
    np.testing.assert_allclose(Vh @ Vh.T, np.eye(k), atol=CONSTANT * UNIT)
    assert (np.diff(S) <= 0).all() and (S >= 0).all()


@given(pair=factor_pairs())
def test_smooth_functions_of_the_svd_are_constant_on_fibres(pair):
    def blind_to_the_stabiliser(B, A):
        U, S, Vh = thin_svd(B, A)
        return U * S @ U.T, Vh.T * S @ Vh, U * S @ Vh, S[1e-6 * S[0] < S]

    assert_invariant(blind_to_the_stabiliser, pair)


def test_singular_vectors_of_repeated_values_are_not_constant_on_fibres():
    B, A, _ = with_spectrum([2.0, 2.0, 1.0])
    with pytest.raises(AssertionError, match="not invariant under GL"):
        assert_invariant(lambda B, A: thin_svd(B, A).U, (B, A))
    with pytest.raises(AssertionError, match="not invariant under GL"):
        assert_invariant(lambda B, A: balance(B, A), (B, A))


def test_projectors_on_clusters_of_repeated_values_are_constant_on_fibres(library):
    S = [3.0, 3.0, 3.0, 1.0, 1.0]
    for seed in range(5):
        B, A, U = with_spectrum(S, rank=6)
        B, A = act(random_gauge(6, condition=100.0, rng=np.random.default_rng(seed)), B, A)
        found = thin_svd(library(B), library(A))
        left, values = np.asarray(found.U), np.asarray(found.S)
        allowed = tolerance(B, A) * 3.0 / 2.0
        np.testing.assert_allclose(values, [*S, 0.0], atol=3 * tolerance(B, A))
        truth = [U[:, :3] @ U[:, :3].T, U[:, 3:] @ U[:, 3:].T]
        np.testing.assert_allclose(left[:, :3] @ left[:, :3].T, truth[0], atol=allowed)
        np.testing.assert_allclose(left[:, 3:5] @ left[:, 3:5].T, truth[1], atol=3 * allowed)


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5, 1e-7])
def test_a_singular_vector_moves_by_rounding_over_the_gap(gap):
    B, A, U = with_spectrum([1.0, 1.0 - gap, 0.3], condition=10.0)
    found = thin_svd(B, A).U
    moved = np.abs(np.outer(found[:, 0], found[:, 0]) - np.outer(U[:, 0], U[:, 0])).max()
    assert moved <= tolerance(B, A, gauge_condition=10.0) / gap


@given(pair=factor_pairs())
def test_balanced_factors_reconstruct_and_are_balanced(library, pair):
    B, A = pair
    half, other = map(np.asarray, balance(library(B), library(A), 0.5))
    S = np.asarray(thin_svd(library(B), library(A), 0.5).S)
    atol = CONSTANT * UNIT * np.linalg.norm(B) * np.linalg.norm(A)
    np.testing.assert_allclose(half @ other, 0.5 * (B @ A), rtol=0, atol=atol)
    np.testing.assert_allclose(half.T @ half, np.diag(S), rtol=0, atol=atol)
    np.testing.assert_allclose(other @ other.T, np.diag(S), rtol=0, atol=atol)


@given(pair=factor_pairs())
def test_canonical_forms_are_idempotent(pair):
    B, A = balance(*pair)
    again_B, again_A = balance(B, A)
    size = np.linalg.norm(B) * np.linalg.norm(A)
    atol = CONSTANT * UNIT * size
    np.testing.assert_allclose(again_B @ again_A, B @ A, rtol=0, atol=atol)
    np.testing.assert_allclose(again_B @ again_B.T, B @ B.T, rtol=0, atol=atol)
    np.testing.assert_allclose(again_A.T @ again_A, A.T @ A, rtol=0, atol=atol)


@pytest.mark.parametrize("which", ["B", "A", "both"])
def test_zero_updates_have_an_orthonormal_svd(library, which):
    B, A = np.ones((5, 3)), np.ones((3, 4))
    B, A = (0 * B if which != "A" else B), (0 * A if which != "B" else A)
    U, S, Vh = map(np.asarray, thin_svd(library(B), library(A)))
    assert not S.any()
    np.testing.assert_allclose(U.T @ U, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(Vh @ Vh.T, np.eye(3), atol=1e-14)


@pytest.mark.parametrize(("S", "expected"), [([2.0, 1.0, 0.5], 3), ([1.0], 1), ([1.0, 1.0, 0.0, 0.0], 2)])
def test_numerical_rank_counts_directions(library, S, expected):
    B, A, _ = with_spectrum(S, rank=6)
    found = numerical_rank(thin_svd(library(B), library(A)).S, rtol=1e-9)
    assert int(found) == expected


def test_numerical_rank_of_zero_is_zero_and_the_threshold_is_relative(library):
    assert int(numerical_rank(library(np.zeros(3)))) == 0
    small = library(np.array([[1e-200, 1e-201], [1.0, 1e-17]]))
    assert np.asarray(numerical_rank(small)).tolist() == [2, 1]


def test_float32_stays_float32_with_a_core_in_float64(library):
    B, A, _ = with_spectrum([1.0, 0.5])
    U, S, Vh = thin_svd(library(B.astype(np.float32)), library(A.astype(np.float32)))
    assert {np.asarray(part).dtype for part in (U, S, Vh)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.asarray(S), [1.0, 0.5], rtol=tolerance(B.astype(np.float32), A.astype(np.float32)))
