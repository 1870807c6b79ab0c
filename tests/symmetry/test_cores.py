"""Inner products, norms, distances and angles against slow references that form ΔW."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorascope.symmetry import distance, inner, norm, principal_angles
from lorascope.testing import CONSTANT, factor_pairs

UNIT = np.finfo(np.float64).eps
RTOL = 1e-7
"""Directions below this share of σ₁ are taken for rounding; those of the strategies are above 1e-4."""


@st.composite
def two_pairs(draw, **options):
    """Two updates of one shape and two ranks."""
    shape = draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    return draw(factor_pairs(shape=shape, **options)), draw(factor_pairs(shape=shape, **options))


def sizes(*pairs):
    return [np.linalg.norm(B) * np.linalg.norm(A) for B, A in pairs]


@given(pairs=two_pairs())
def test_inner_and_norm_agree_with_dense_matrices(library, pairs):
    one, two = pairs
    left, right = (tuple(map(library, pair)) for pair in pairs)
    size1, size2 = sizes(one, two)
    found = float(inner(*left, *right, 2.0, -0.5))
    assert abs(found + np.sum((one[0] @ one[1]) * (two[0] @ two[1]))) <= CONSTANT * UNIT * size1 * size2
    assert abs(float(norm(*left, -3.0)) - 3 * np.linalg.norm(one[0] @ one[1])) <= CONSTANT * UNIT * 3 * size1


@given(pairs=two_pairs())
def test_distance_agrees_with_dense_matrices(library, pairs):
    one, two = pairs
    left, right = (tuple(map(library, pair)) for pair in pairs)
    dense = np.linalg.norm(2.0 * (one[0] @ one[1]) + 0.5 * (two[0] @ two[1]))
    size1, size2 = sizes(one, two)
    assert abs(float(distance(*left, *right, 2.0, -0.5)) - dense) <= CONSTANT * UNIT * (2 * size1 + size2)


def test_a_small_distance_in_float32_does_not_cancel(library):
    rng = np.random.default_rng(0)
    B, A = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 8), (8, 64)))
    B, A = B / np.linalg.norm(B), A / np.linalg.norm(A)
    near = (B * np.float32(1 + 3e-6)).astype(np.float32)
    truth = np.linalg.norm((B.astype(np.float64) - near) @ A.astype(np.float64))
    assert 1e-7 < truth < 2e-6
    left, right, other = library(B), library(near), library(A)
    found = float(distance(left, other, right, other))
    unit = np.finfo(np.float32).eps
    assert abs(found - truth) <= 4 * unit
    n1, n2, both = (np.float32(inner(x, other, y, other)) for x, y in ((left, left), (right, right), (left, right)))
    expanded = np.sqrt(max(np.float32(0), n1 + n2 - 2 * both))
    assert abs(expanded - truth) > 20 * abs(found - truth)


def test_an_update_in_two_gauges_is_at_no_distance(library):
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((30, 4)), rng.standard_normal((4, 20))
    M = rng.standard_normal((4, 4))
    moved = B @ np.linalg.inv(M), M @ A
    bound = CONSTANT * UNIT * np.linalg.cond(M) * np.linalg.norm(B) * np.linalg.norm(A)
    assert float(distance(*map(library, (B, A, *moved)))) <= bound


@pytest.mark.parametrize("kind", ["plain", "zero", "deficient"])
def test_inner_has_exact_gradients(kind):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    B, A = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((5, 3), (3, 4)))
    if kind == "zero":
        B, A = B * 0, A * 0
    if kind == "deficient":
        B[:, 1] = B[:, 0]
    other = torch.ones(5, 2, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64)
    inputs = B.requires_grad_(), A.requires_grad_()
    assert torch.autograd.gradcheck(lambda B, A: inner(B, A, *other, 0.5, 2.0), inputs)
    assert torch.autograd.gradcheck(lambda B, A: inner(B, A, B, A), inputs)


@given(pairs=two_pairs(kinds=("plain", "deficient", "repeated")), side=st.sampled_from(["out", "in"]))
def test_angles_agree_with_scipy(library, pairs, side):
    one, two = pairs
    found = np.asarray(principal_angles(*map(library, (*one, *two)), side=side, rtol=RTOL))
    bases, spread = [], 1.0
    for B, A in pairs:
        U, S, Vh = np.linalg.svd(B @ A, full_matrices=False)
        rank = int((S > RTOL * S[0]).sum())
        bases.append(U[:, :rank] if side == "out" else Vh[:rank].T)
        spread = max(spread, np.linalg.norm(B) * np.linalg.norm(A) / S[rank - 1])
    expected = np.sort(scipy.linalg.subspace_angles(*bases))
    assert found.shape == (min(len(found), *(min(*pair[0].shape, pair[1].shape[1]) for pair in pairs)),)
    defined = found[~np.isnan(found)]
    assert not np.isnan(found[: len(defined)]).any()
    tiny = expected < 1e-6  # where SciPy's own error is √eps; test_small_and_large_angles covers these
    assert (np.abs(defined - expected) <= np.where(tiny, 1e-6, CONSTANT * UNIT * spread)).all()


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 0.5, np.pi / 4, np.pi / 2 - 1e-6, np.pi / 2])
def test_small_and_large_angles_are_exact(library, angle):
    x = np.array([[1.0], [0.0], [0.0]])
    y = np.array([[np.cos(angle)], [np.sin(angle)], [0.0]])
    row = np.ones((1, 2))
    found = float(principal_angles(*map(library, (x, row, y, row)))[0])
    assert abs(found - angle) <= 4 * UNIT * max(1.0, angle)


def test_angles_with_a_zero_update_do_not_exist(library):
    B, A = np.eye(4, 2), np.eye(2, 3)
    assert np.isnan(np.asarray(principal_angles(*map(library, (B, A, 0 * B, A))))).all()


def test_angles_of_mixed_dimensions_in_one_batch(library):
    one = np.stack([np.eye(4, 2), np.array([[1.0, 0], [0, 0], [0, 0], [0, 0]])])
    two = np.stack([np.array([[0, 0.0], [1, 0], [0, 0], [0, 0]]), np.eye(4, 2)])
    A = np.broadcast_to(np.eye(2, 5), (2, 2, 5)).copy()
    found = np.asarray(principal_angles(*map(library, (one, A, two, A))))
    np.testing.assert_allclose(found[:, 0], 0.0, atol=1e-14)
    assert np.isnan(found[:, 1]).all()
