"""Projections of large sides: what a balanced count sketch is, and that it errs like dense signs, whatever it is of."""

import numpy as np
import pytest
import torch

from lorascope.features import projection
from lorascope.features.projection import LARGE, projected, projections, sketch_of
from lorascope.predict.kernels._side import weighted_side
from lorascope.symmetry import SiteStack

N, H, SEEDS = 1040, 16, 500
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("n", "h"), [(1024, 32), (1030, 16), (1100, 7), (1024, 1000)])
def test_every_row_is_in_one_bucket_and_the_buckets_are_equal_up_to_one(n, h):
    P = sketch_of("q", "out", h, n, 0).matrix(n)
    assert set(np.unique(P)) == {-1.0, 0.0, 1.0}
    assert (np.abs(P).sum(axis=0) == 1).all()
    sizes = np.abs(P).sum(axis=1)
    assert sizes.max() - sizes.min() <= 1
    assert 0.4 < (P[P != 0] > 0).mean() < 0.6


@pytest.mark.parametrize("n", [1024, 1030])
def test_the_fast_way_is_the_product_with_the_matrix(n):
    sketch = sketch_of("q", "in", 16, n, 3)
    X = np.random.default_rng(1).standard_normal((2, n, 3))
    [P] = projections(["q"], "in", 16, n, seed=3)
    # sums of up to 65 numbers in another order
    assert np.allclose(sketch.of(X), P @ X, rtol=0, atol=65 * np.finfo(np.float64).eps * np.abs(X).max() * 8)
    assert np.allclose(sketch.of(torch.from_numpy(X)).numpy(), sketch.of(X), rtol=0, atol=1e-12)
    assert sketch.of(X.astype(np.float32)).dtype == np.float32


def test_a_stack_of_large_sites_is_seen_through_the_sketch_of_each():
    rng = np.random.default_rng(2)
    stack = SiteStack(("q", "v"), rng.standard_normal((3, 2, 1030, 2)), rng.standard_normal((3, 2, 2, 20)))
    seen = projected(stack, "out", 16, 0)
    P = projections(["q", "v"], "out", 16, 1030)
    assert (P[0] != P[1]).any()
    assert np.allclose(seen, P @ stack.svd.U, rtol=0, atol=1e-12)
    assert projected(stack, "in", 16, 0).shape == (3, 2, 16, 2)


def test_sketches_are_fixed_for_all_time():
    # saved predictors depend on these rows and signs
    sketch = sketch_of("layers.0.q", "in", 256, 1024, 7)
    assert sketch.rows[:2].tolist() == ROWS
    assert sketch.signs[:2, 0].tolist() == SIGNS


ROWS = [[1012, 969, 491, 873], [956, 298, 981, 67]]
SIGNS = [[-1.0, -1.0, -1.0, 1.0], [-1.0, 1.0, 1.0, -1.0]]


def test_smaller_sides_have_the_dense_signs_that_they_always_had():
    P = projections(["q"], "out", 16, LARGE - 1)
    assert set(np.unique(P)) == {-0.25, 0.25}


def supports(kind, count):
    if kind == "few":
        return RNG.choice(N, count, replace=False)
    if kind == "spaced":
        return RNG.integers(N // count) + N // count * np.arange(count)
    return RNG.integers(N - count + 1) + np.arange(count)


SUPPORTS = {
    "all rows": np.arange(N),
    **{f"{kind} {count}": supports(kind, count) for kind in ("few", "spaced", "run") for count in (8, 65)},
}


def pair(rows, k):
    """Two orthonormal [N, k] on these rows, whose spaces lie at an angle."""
    rng = np.random.default_rng(4)
    X, Y = np.zeros((N, k)), np.zeros((N, k))
    X[rows] = np.linalg.qr(rng.standard_normal((len(rows), k)))[0]
    Y[rows] = np.linalg.qr(X[rows] + rng.standard_normal((len(rows), k)) / np.sqrt(len(rows)))[0]
    return X, Y


def seen(monkeypatch, way, X):
    """X under many projections, [SEEDS, H, k]."""
    monkeypatch.setattr(projection, "LARGE", LARGE if way == "sketch" else N + 1)
    found = np.stack([projections(["q"], "out", H, N, seed=seed)[0] @ X for seed in range(SEEDS)])
    assert len(np.unique(np.abs(projections(["q"], "out", H, N)))) == (2 if way == "sketch" else 1)
    return found


@pytest.mark.parametrize("name", SUPPORTS)
@pytest.mark.parametrize("way", ["sketch", "dense"])
def test_inner_products_have_the_stated_mean_and_variance(monkeypatch, way, name):
    X, Y = pair(SUPPORTS[name], 2)
    x, y = X[:, 0], Y[:, 0]
    PX = seen(monkeypatch, way, np.stack([x, y], axis=1))
    z = (PX[..., 0] * PX[..., 1]).sum(axis=1)
    p = (N / H - 1) / (N - 1) if way == "sketch" else 1 / H
    variance = p * (x @ x * (y @ y) + (x @ y) ** 2 - 2 * (x**2 * y**2).sum())
    assert abs(z.mean() - x @ y) < 5 * np.sqrt(variance / SEEDS)
    # the variance of a variance is (kurtosis − 1) / n of it; that of a handful of collisions is about that of one
    fourth = float(((z - z.mean()) ** 4).mean()) / variance**2
    assert abs(z.var() / variance - 1) < 5 * np.sqrt(max(fourth - 1, 2) / SEEDS)


@pytest.mark.parametrize("name", SUPPORTS)
def test_the_features_of_a_side_compare_as_well_as_under_dense_signs(monkeypatch, name):
    X, Y = pair(SUPPORTS[name], 4)
    w = np.geomspace(1.0, 0.1, 4)
    exact = float(((X * w).T @ Y @ np.diag(w) @ Y.T @ X).trace() / (w**2).sum())
    errors = {}
    for way in ("sketch", "dense"):
        PX = seen(monkeypatch, way, np.concatenate([X, Y], axis=1))
        one, other = (weighted_side(part, np.tile(w, (SEEDS, 1))) for part in (PX[..., :4], PX[..., 4:]))
        errors[way] = (one * other).sum(axis=1) - exact
    rms = {way: np.sqrt((own**2).mean()) for way, own in errors.items()}
    spread = np.sqrt(sum((own**2).var() / SEEDS / (own**2).mean() ** 2 for own in errors.values()))
    assert rms["sketch"] < rms["dense"] * (1 + 4 * spread)
    assert rms["dense"] < 0.5
