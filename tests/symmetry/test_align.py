"""O-Align: one representative per fibre, where its ``smallest`` singular value is positive."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from lorascope.symmetry import align, balance, random_template, thin_svd
from lorascope.testing import CONSTANT, assert_invariant, factor_pairs

UNIT = np.finfo(np.float64).eps
RTOL = 1e-7
RANK = 16


def sensitivity(B, A, template):
    """How much faster than ΔW the aligned factors move: σ₁/σ_k for √S, and ‖stack‖‖template‖ over ``smallest``."""
    S = thin_svd(B, A).S
    S = S[S > RTOL * S[0]]
    if not len(S):
        return 1.0
    smallest = float(align(B, A, *template, rtol=RTOL).smallest)
    return S[0] / S[-1] * max(1.0, np.sqrt(S[0]) * np.linalg.norm(np.vstack([template[0], template[1].T])) / smallest)


@given(pair=factor_pairs(), seed=st.integers(0, 99))
def test_alignment_is_invariant_to_all_of_gl(pair, seed):
    B, A = pair
    template = random_template(len(B), A.shape[1], RANK, seed=seed)
    assert_invariant(lambda B, A: align(B, A, *template, rtol=RTOL)[:2], pair, sensitivity=sensitivity(B, A, template))


@given(pair=factor_pairs())
def test_alignment_of_unbalanced_factors_is_not(pair):
    B, A = pair
    if not (B @ A).any():
        return
    template = random_template(len(B), A.shape[1], B.shape[1], seed=0)

    def public_code(B, A):
        R = scipy.linalg.orthogonal_procrustes(np.vstack([B, A.T]), np.vstack([template[0], template[1].T]))[0]
        return B @ R

    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(public_code, pair)


@given(pair=factor_pairs())
def test_aligned_factors_reconstruct(library, pair):
    B, A = pair
    template = map(library, random_template(len(B), A.shape[1], RANK, seed=0))
    found = align(library(B), library(A), *template, scale=-2.0)
    atol = 2 * CONSTANT * UNIT * np.linalg.norm(B) * np.linalg.norm(A)
    np.testing.assert_allclose(np.asarray(found.B @ found.A), -2 * (B @ A), rtol=0, atol=atol)
    assert found.B.shape == (len(B), RANK) and found.A.shape == (RANK, A.shape[1])


def test_alignment_solves_the_procrustes_problem():
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((8, 3)), rng.standard_normal((3, 6))
    template = random_template(8, 6, 3, seed=1)
    target = np.vstack([template[0], template[1].T])
    balanced = np.vstack([(half := balance(B, A))[0], half[1].T])
    R = scipy.linalg.orthogonal_procrustes(balanced, target)[0]
    found = align(B, A, *template)
    np.testing.assert_allclose(np.vstack([found.B, found.A.T]), balanced @ R, atol=1e-12)
    assert float(found.smallest) == pytest.approx(np.linalg.svd(balanced.T @ target, compute_uv=False)[-1])


def test_the_form_is_not_unique_where_smallest_is_zero():
    B, A = np.eye(4, 2), np.eye(2, 4)
    template = np.zeros((4, 2)), np.zeros((2, 4))
    template[0][:, 0] = [1.0, 0, 0, 0]
    assert float(align(B, A, *template).smallest) == pytest.approx(0.0, abs=1e-15)


def test_a_template_of_too_few_directions_is_refused(library):
    rng = np.random.default_rng(0)
    pair = rng.standard_normal((5, 3)), rng.standard_normal((3, 5))
    with pytest.raises(ValueError, match="3 directions, the template only 2"):
        align(*map(library, (*pair, *random_template(5, 5, 2, seed=0))))


def test_spare_rank_is_dropped_and_not_refused(library):
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((5, 2)), rng.standard_normal((2, 5))
    C = rng.standard_normal((2, 4))
    found = align(*map(library, (B @ C, np.linalg.pinv(C) @ A, *random_template(5, 5, 2, seed=0))))
    np.testing.assert_allclose(np.asarray(found.B @ found.A), B @ A, atol=1e-12)


def test_the_zero_update_has_the_zero_form(library):
    template = map(library, random_template(5, 4, 3, seed=0))
    found = align(library(np.zeros((5, 2))), library(np.ones((2, 4))), *template)
    assert not np.asarray(found.B).any() and not np.asarray(found.A).any()
    assert np.isnan(float(found.smallest))


def test_a_batch_with_mixed_directions(library):
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((3, 5, 2)), rng.standard_normal((3, 2, 4))
    B[1, :, 1], B[2] = 0, 0
    template = random_template(5, 4, 3, seed=0)
    found = align(*map(library, (B, A, *template)))
    for i in range(3):
        alone = align(B[i], A[i], *template)
        np.testing.assert_allclose(np.asarray(found.B)[i], alone.B, atol=1e-12)
        np.testing.assert_allclose(np.asarray(found.A)[i], alone.A, atol=1e-12)
        np.testing.assert_allclose(np.asarray(found.smallest)[i], alone.smallest, atol=1e-12)


def test_templates_come_from_their_seed():
    first, again, other = (random_template(3, 4, 2, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first[0], again[0]) and not np.array_equal(first[0], other[0])
