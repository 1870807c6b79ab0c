"""The thin SVD by Gram matrices is that by QR, to what its condition number promises."""

import numpy as np
import pytest

from lorascope.symmetry import gram, thin_svd
from lorascope.symmetry.gram import Root, projected_svd


def factors(condition, seed=0, out=200, in_=150, rank=6):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((out, rank)))[0]
    turn = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
    B = (Q * np.geomspace(1, 1 / condition, rank)) @ turn
    return B, rng.standard_normal((rank, in_))


def by_gram(B, A, P, Q):
    across = np.swapaxes(A, -1, -2)
    return projected_svd(P @ B, Q @ across, Root.of(np.swapaxes(B, -1, -2) @ B), Root.of(A @ across))


def projectors(found_or_svd):
    left, S, right = found_or_svd
    return left @ np.swapaxes(left, -1, -2), S, right @ np.swapaxes(right, -1, -2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("condition", [1.5, 10.0, 100.0])
def test_it_is_the_svd_to_the_square_of_the_condition(condition, dtype):
    B, A = factors(condition)
    P, Q = (np.random.default_rng(1).standard_normal((8, n)) / np.sqrt(8) for n in (200, 150))
    found = by_gram(*(x.astype(dtype) for x in (B, A, P, Q)))
    U, S, Vh = thin_svd(B, A)
    # sums over 200 rows round by a few units
    tolerance = 16 * np.finfo(dtype).eps * max(float(found.condition) ** 2, 1.0)
    for one, other in zip(projectors(found[:3]), projectors((P @ U, S, Q @ Vh.T)), strict=True):
        assert np.abs(one - other).max() < tolerance * max(1.0, np.abs(other).max())


def test_the_condition_is_a_bound_of_that_with_columns_of_unit_length():
    B, A = factors(30.0)
    conditions = [np.linalg.cond(X / np.linalg.norm(X, axis=0)) for X in (B * np.geomspace(1, 1e6, 6), A.T)]
    P = np.eye(200)[:3], np.eye(150)[:3]
    found = by_gram(B * np.geomspace(1, 1e6, 6), A, *P)
    assert max(conditions) <= found.condition * (1 + 1e-9)
    assert found.condition <= 6 * max(conditions)


@pytest.mark.parametrize("spoil", ["zero", "repeated", "infinite"])
def test_a_factor_without_full_rank_is_said_and_harms_no_other(spoil):
    B, A = (np.stack([x, x]) for x in factors(3.0))
    B[1, :, 0] = {"zero": 0.0, "repeated": B[1, :, 1], "infinite": np.inf}[spoil]
    with np.errstate(invalid="ignore"):
        found = by_gram(B, A, np.eye(200)[:3], np.eye(150)[:3])
    alone = by_gram(B[0], A[0], np.eye(200)[:3], np.eye(150)[:3])
    if spoil == "zero":
        assert np.allclose(found.S[1], thin_svd(B[1], A[1]).S, atol=1e-12)
        assert np.isfinite(found.left).all()
    else:
        assert found.condition[1] > 1e7
    assert np.allclose(found.S[0], alone.S, rtol=1e-12)


def test_singular_vectors_far_from_the_largest_come_from_an_svd_and_near_ones_are_those_of_it():
    rng = np.random.default_rng(0)
    turns = [np.linalg.qr(rng.standard_normal((5, 6, 6)))[0] for _ in range(2)]
    S = np.stack([np.geomspace(1, least, 6) for least in (0.5, 2e-4, 1e-6, 1e-12, 1.0)])
    S[-1] = 0.0
    C = (turns[0] * S[:, None, :]) @ np.swapaxes(turns[1], -1, -2)
    X, found, Y = gram._svd(C)
    # eps / NEAR² of a vector that is near, eps of the values
    off = 16 * np.finfo(np.float64).eps / gram.NEAR**2
    identity = np.eye(6)
    for one in (X, Y):
        assert np.abs(np.swapaxes(one, -1, -2) @ one - identity).max() < off
    assert np.abs(found - S).max() < 1e3 * np.finfo(np.float64).eps
    assert np.abs((X * found[:, None, :]) @ np.swapaxes(Y, -1, -2) - C).max() < 1e3 * np.finfo(np.float64).eps
    assert np.allclose(found[1], S[1], rtol=off)
    assert (np.diff(found) <= 1e-12 * found[..., :1]).all()
