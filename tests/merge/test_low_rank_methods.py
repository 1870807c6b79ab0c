"""Methods that give low rank exactly, against dense float64 references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import LorascopeError
from lorascope.merge import METHODS, merge
from lorascope.merge.dropping import kept_at_random
from lorascope.merge.joint import columns_of, rows_of
from lorascope.merge.method import Parts
from lorascope.merge.rank_units import Geometry, grouped
from lorascope.symmetry import balance
from lorascope.symmetry.common_sites import CommonSites
from merge import dense_references as references

SHAPE, RANKS = (14, 11), (2, 3, 1)
WEIGHTS = [0.7, -0.4, 1.1]
TOLERANCE = 1e-10  # of entries of order 1 to 10, in float64, through a few SVDs


def merged(
    name: str, weights: list[float] = WEIGHTS, adapters: list[Adapter] | None = None, seed: int = 0, **options: Any
) -> Any:
    """ΔW of a method without a cut, in float64."""
    adapters = references.adapters_of(SHAPE, RANKS) if adapters is None else adapters
    result = merge(adapters, METHODS[name](**options), weights=weights, dtype=np.float64, seed=seed)
    assert result.relative_error < 1e-12
    return result.adapter["q"].delta_weight(np.float64)


def deltas() -> list[Any]:
    return references.deltas_of(references.adapters_of(SHAPE, RANKS))


def svd(matrix: Any, cutoff: float = 1e-9) -> tuple[Any, Any, Any]:
    """Of the dense matrix, without zeros."""
    U, S, Vh = np.linalg.svd(matrix, full_matrices=False)
    kept = cutoff * S[0] < S
    return U[:, kept], S[kept], Vh[kept]


def weighted_sum(weights: list[float] = WEIGHTS) -> Any:
    return sum(weight * delta for weight, delta in zip(weights, deltas(), strict=True))


def aligned() -> tuple[Any, list[Any]]:
    """U and the S V_iᵀ of KnOTS, from the dense concatenation."""
    U, S, Vh = svd(np.concatenate(deltas(), axis=1))
    return U, [S[:, None] * Vh[:, k * SHAPE[1] : (k + 1) * SHAPE[1]] for k in range(len(RANKS))]


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_knots_is_ties_in_the_coordinates_of_the_concatenation(density: float) -> None:
    U, own = aligned()
    expected = 1.5 * U @ references.ties(own, WEIGHTS, density)
    np.testing.assert_allclose(merged("knots-ties", density=density, factor=1.5), expected, atol=TOLERANCE)


def test_knots_with_dare_drops_there_at_random() -> None:
    """Which entries stay depends on no sign: with the masks of another SVD of the same matrix it is the same."""
    U, own = aligned()
    random = Parts("q", [], np.zeros(0), 3).generator
    masks = [kept_at_random(SHAPE[1], 0.6, random(k))(slice(0, sum(RANKS))) for k in range(len(RANKS))]
    dropped = [np.where(kept, one, 0.0) / 0.6 for kept, one in zip(masks, own, strict=True)]
    expected = U @ references.elected_mean(dropped, WEIGHTS)
    np.testing.assert_allclose(merged("knots-dare-ties", density=0.6, seed=3), expected, atol=TOLERANCE)


def test_a_weighted_sum_in_any_common_coordinates_is_the_weighted_sum() -> None:
    """Of KnOTS and of the core space: nothing is lost by them, and all that they gain is from what is not linear."""
    pairs = CommonSites.of(references.adapters_of(SHAPE, RANKS)).pairs("q", np.float64)
    U, V = columns_of(pairs).basis, rows_of(pairs).basis
    assert U.shape == (SHAPE[0], sum(RANKS)) and V.shape == (SHAPE[1], sum(RANKS))
    knots = U @ sum(w * (U.T @ pair.B) @ pair.A for w, pair in zip(WEIGHTS, pairs, strict=True))
    np.testing.assert_allclose(knots, weighted_sum(), atol=TOLERANCE)
    np.testing.assert_allclose(merged("core-space", inner="linear"), weighted_sum(), atol=TOLERANCE)
    np.testing.assert_allclose(merged("linear"), weighted_sum(), atol=TOLERANCE)


@pytest.mark.parametrize("density", [0.2, 0.6])
def test_core_space_is_ties_between_the_dense_bases(density: float) -> None:
    U, _, _ = svd(np.concatenate(deltas(), axis=1))
    _, _, Vh = svd(np.concatenate(deltas(), axis=0))
    cores = [U.T @ delta @ Vh.T for delta in deltas()]
    expected = U @ references.ties(cores, WEIGHTS, density) @ Vh
    np.testing.assert_allclose(merged("core-space", density=density), expected, atol=TOLERANCE)


def test_iso_c_makes_the_spectrum_of_the_sum_flat() -> None:
    U, S, Vh = svd(weighted_sum())
    assert len(S) == sum(RANKS)
    for name, options in (("iso-c", {}), ("core-space", {"inner": "iso-c"})):
        np.testing.assert_allclose(merged(name, factor=0.5, **options), 0.5 * S.mean() * U @ Vh, atol=TOLERANCE)


def test_iso_c_does_not_raise_rounding_to_the_mean() -> None:
    """Two adapters whose A differ by half precision: the sum has 2 directions, and 2 more that are noise."""
    random = np.random.default_rng(0)
    A = random.standard_normal((2, 11))
    adapters = [
        Adapter({"q": LowRank(random.standard_normal((14, 2)), A * (1 + 1e-4 * random.standard_normal(A.shape)))})
        for _ in range(2)
    ]
    assert np.linalg.matrix_rank(merged("iso-c", [1.0, 1.0], adapters)) == 2
    assert np.linalg.matrix_rank(merged("iso-c", [1.0, 1.0], adapters, cutoff=1e-6)) == 4


@pytest.mark.parametrize("common", [0.2, 0.5, 0.8, 1.0])
def test_iso_cts_takes_directions_of_the_sum_and_of_each_update(common: float) -> None:
    weights = [1.0, 0.8, 1.2]
    total = weighted_sum(weights)
    U, S, Vh = svd(total)
    own = round((len(S) - int(common * len(S))) / 3)
    kept = len(S) - 3 * own
    lefts, values, rights = [U[:, :kept]], [S[:kept]], [Vh[:kept]]
    for weight, delta in zip(weights, deltas(), strict=True):
        rest = weight * (delta - U[:, :kept] @ U[:, :kept].T @ delta)
        u, s, vh = svd(rest)
        lefts, values, rights = [*lefts, u[:, :own]], [*values, s[:own]], [*rights, vh[:own]]
    left, right = references.polar(np.concatenate(lefts, axis=1)), references.polar(np.concatenate(rights).T)
    expected = np.concatenate(values).mean() * left @ right.T
    np.testing.assert_allclose(merged("iso-cts", weights, common=common), expected, atol=TOLERANCE)


def test_tsv_makes_the_singular_vectors_side_by_side_orthonormal() -> None:
    parts = [svd(delta) for delta in deltas()]
    left = references.polar(np.concatenate([u for u, _, _ in parts], axis=1))
    right = references.polar(np.concatenate([vh for _, _, vh in parts]).T)
    S = np.concatenate([weight * s for weight, (_, s, _) in zip(WEIGHTS, parts, strict=True)])
    np.testing.assert_allclose(merged("tsv"), left * S @ right.T, atol=TOLERANCE)


def test_tsv_of_an_update_with_itself_adds_nothing_arbitrary() -> None:
    [one] = references.adapters_of(SHAPE, (2,))
    np.testing.assert_allclose(merged("tsv", [1.0, 1.0], [one, one]), one["q"].delta_weight(np.float64), atol=TOLERANCE)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp_goes_along_the_great_circle(t: float) -> None:
    a, b = deltas()[:2]
    x, y = a / np.linalg.norm(a), b / np.linalg.norm(b)
    angle = np.arccos(np.vdot(x, y))
    length = (1 - t) * np.linalg.norm(a) + t * np.linalg.norm(b)
    expected = length * (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)
    two = references.adapters_of(SHAPE, RANKS)[:2]
    found = merged("slerp", [2 * (1 - t), 2 * t], two)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert np.linalg.norm(found) == pytest.approx(length)


def turned(adapter: Adapter, B: Any) -> Adapter:
    return Adapter({"q": LowRank(B, adapter["q"].factors(np.float64).A, adapter["q"].factors(np.float64).scale)})


def test_slerp_at_equal_nearly_equal_opposite_and_zero_updates() -> None:
    [one] = references.adapters_of(SHAPE, (2,))
    delta, B = one["q"].delta_weight(np.float64), one["q"].factors(np.float64).B
    np.testing.assert_allclose(merged("slerp", [0.5, 0.5], [one, turned(one, 3 * B)]), 2 * delta, atol=TOLERANCE)
    noise = np.random.default_rng(1).standard_normal(B.shape)
    for size in (1e-3, 1e-7, 1e-12):
        near = turned(one, B + size * noise)
        mean = (delta + near["q"].delta_weight(np.float64)) / 2
        np.testing.assert_allclose(
            merged("slerp", [0.5, 0.5], [one, near]), mean, atol=TOLERANCE + 10 * size**2 * np.linalg.norm(delta)
        )
    zero = turned(one, 0 * B)
    np.testing.assert_allclose(merged("slerp", [0.75, 0.25], [one, zero]), 0.75 * delta, atol=TOLERANCE)
    assert merge([zero, zero], "slerp").adapter["q"].norm() == 0.0
    with pytest.raises(LorascopeError, match=r"^q: the two updates point in opposite directions"):
        merged("slerp", [0.5, 0.5], [one, turned(one, -2 * B)])
    with pytest.raises(LorascopeError, match="negative weights"):
        merged("slerp", [1.5, -0.5], [one, one])


def point(delta: Any, rank: int) -> Any:
    """[B; Aᵀ] balanced, from the dense SVD."""
    U, S, Vh = np.linalg.svd(delta, full_matrices=False)
    S[S < 1e-9 * S[0]] = 0.0
    return np.concatenate([U[:, :rank], Vh[:rank].T]) * np.sqrt(S[:rank])


def squared(x: Any, y: Any) -> float:
    """min_Q ‖x − y Q‖²."""
    rotation, _ = orthogonal_procrustes(y, x)
    return float(np.linalg.norm(x - y @ rotation) ** 2)


def test_the_frechet_mean_makes_its_sum_of_squares_least() -> None:
    weights = [0.5, 0.3, 0.2]
    found = merged("frechet", weights)
    assert np.linalg.matrix_rank(found, tol=1e-9) == 3
    points = [point(delta, 3) for delta in deltas()]

    # the mean itself is not balanced: an X with its product is found by the fixed point that it has to be
    mean = point(found, 3)
    for _ in range(2000):
        mean = sum(w * p @ orthogonal_procrustes(p, mean)[0] for w, p in zip(weights, points, strict=True))
    np.testing.assert_allclose(mean[: SHAPE[0]] @ mean[SHAPE[0] :].T, found, atol=1e-9)
    least = sum(w * squared(mean, p) for w, p in zip(weights, points, strict=True))
    random = np.random.default_rng(0)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(20):
            other = mean + size * random.standard_normal(mean.shape)
            assert sum(w * squared(other, p) for w, p in zip(weights, points, strict=True)) > least


def test_the_frechet_mean_of_two_divides_their_distance() -> None:
    one, two = references.adapters_of(SHAPE, (2, 2), seed=4)
    x, y = (np.concatenate([B, A.T]) for B, A in (balance(*a["q"].factors(np.float64)) for a in (one, two)))
    rotation, _ = orthogonal_procrustes(y, x)
    middle = 0.75 * x + 0.25 * y @ rotation
    expected = middle[: SHAPE[0]] @ middle[SHAPE[0] :].T
    np.testing.assert_allclose(merged("frechet", [0.75, 0.25], [one, two]), expected, atol=1e-9)
    assert squared(middle, y) == pytest.approx(0.75**2 * squared(x, y))


def test_the_frechet_mean_refuses_what_has_none() -> None:
    [one] = references.adapters_of(SHAPE, (2,))
    with pytest.raises(LorascopeError, match="negative weights"):
        merged("frechet", [2.0, -1.0], [one, one])
    with pytest.raises(LorascopeError, match=r"^q: the Fréchet mean did not settle"):
        merged("frechet", iterations=2, weights=[1.0, 1.0, 1.0])
    opposite = turned(one, -one["q"].factors(np.float64).B)
    assert merge([one, opposite], "frechet").adapter["q"].norm() == pytest.approx(0.0, abs=1e-12)


def test_lego_with_a_group_for_each_unit_is_the_sum() -> None:
    for name in ("lego", "lego-original"):
        found = merged(name, [1.0, 2.0, 1.0], clusters=6, reweight=False)
        np.testing.assert_allclose(found, sum(deltas()), atol=TOLERANCE)
    found = merged("lego", [1.0, -1.0, 1.0], clusters=6, reweight=True)
    first, second, third = deltas()
    np.testing.assert_allclose(found, np.sqrt(3 / 6) * (first - second + third), atol=TOLERANCE)


def test_lego_finds_units_that_updates_share_whatever_their_signs() -> None:
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.standard_normal((side, 3))).Q for side in SHAPE)
    S = np.array([5.0, 3.0, 2.0])
    planted = (left * S) @ right.T
    adapters = []
    for signs in ([1, 1, 1], [-1, 1, -1], [-1, -1, 1]):
        noise = 1e-6 * random.standard_normal(SHAPE)
        adapters.append(Adapter({"q": LowRank(left * S * signs + noise[:, :3], (right * signs).T)}))
    np.testing.assert_allclose(merged("lego", [1.0, 1.0, 1.0], adapters), planted, atol=1e-5)
    assert np.abs(merged("lego-original", [1.0, 1.0, 1.0], adapters) - planted).max() > 0.1


def test_a_group_has_the_mean_norm_of_its_units() -> None:
    for name in ("lego", "lego-original"):
        found = merged(name, [1.0, 1.0, 2.0], clusters=1, reweight=False)
        assert np.linalg.matrix_rank(found, tol=1e-9) == 1
    units = np.concatenate([svd(delta)[1] for delta in deltas()])
    weights = np.repeat([1.0, 1.0, 2.0], RANKS)
    expected = weights @ units / weights.sum()
    assert np.linalg.norm(merged("lego", [1.0, 1.0, 2.0], clusters=1, reweight=False)) == pytest.approx(expected)


def test_groups_are_those_of_planted_points() -> None:
    random = np.random.default_rng(0)
    x = np.repeat([-10.0, 0.5, 20.0], 5) + 0.1 * random.standard_normal(15)
    geometry = Geometry(abs(x), lambda of: float(x[of].mean()), lambda mean: abs(x - mean))
    groups = {tuple(of.tolist()) for of, _ in grouped(geometry, 3)}
    assert groups == {tuple(range(5)), tuple(range(5, 10)), tuple(range(10, 15))}
    assert len(grouped(geometry, 99)) == 15


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("core-space", {"inner": "mean"}, "inner: cores are not merged so .expected one of linear, ties, iso-c"),
        ("iso-c", {"cutoff": 0.0}, "cutoff: there is no such share"),
        ("iso-cts", {"common": 1.2}, "common: there is no such share"),
        ("tsv", {"factor": float("inf")}, "factor: not a finite number"),
        ("lego", {"clusters": -1}, "clusters: too small"),
        ("lego-original", {"clusters": -1}, "clusters: too small"),
        ("frechet", {"iterations": 0}, "iterations: too small"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(LorascopeError, match=words):
        METHODS[name](**options)
