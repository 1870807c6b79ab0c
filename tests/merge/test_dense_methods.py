"""ties, dare, dare-ties and magnitude-prune against dense references; selection and masks by blocks."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from lorascope.adapter.rows import row_blocks
from lorascope.errors import LorascopeError
from lorascope.merge import METHODS, Parts, Rows, dense, merge
from lorascope.merge.dropping import kept_at_random
from lorascope.merge.selection import largest_magnitude
from lorascope.symmetry.common_sites import CommonSites
from lorascope.symmetry.truncation import Cut
from merge import dense_references as references

SHAPE, RANKS = (9, 7), (2, 3, 1)
WEIGHTS = [0.7, -0.4, 1.1]


def merged(name: str, weights: list[float] = WEIGHTS, **options: Any) -> Any:
    """ΔW of a method at full rank, in float64."""
    adapters = references.adapters_of(SHAPE, RANKS)
    result = merge(adapters, METHODS[name](**options), weights=weights, dtype=np.float64, cut=Cut(rank=7))
    return result.adapter["q"].delta_weight(np.float64)


def masks(density: float) -> list[Any]:
    """The masks of the site ``q`` that the seed 0 gives."""
    random = Parts("q", [], np.zeros(0)).generator
    return [kept_at_random(SHAPE[1], density, random(place))(slice(0, SHAPE[0])) for place in range(len(RANKS))]


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], WEIGHTS])
@pytest.mark.parametrize("density", [0.01, 0.2, 0.55, 1.0])
def test_ties_is_the_paper_entry_by_entry(density: float, weights: list[float]) -> None:
    deltas = references.deltas_of(references.adapters_of(SHAPE, RANKS))
    expected = 0.3 * references.ties(deltas, weights, density)
    np.testing.assert_allclose(merged("ties", weights, density=density, factor=0.3), expected, atol=1e-12)


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_magnitude_prune_sums_trimmed_updates(density: float) -> None:
    deltas = references.deltas_of(references.adapters_of(SHAPE, RANKS))
    expected = sum(w * references.trimmed(delta, density) for w, delta in zip(WEIGHTS, deltas, strict=True))
    np.testing.assert_allclose(merged("magnitude-prune", density=density), expected, atol=1e-12)


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_dare_sums_updates_with_dropped_entries(density: float) -> None:
    deltas = references.deltas_of(references.adapters_of(SHAPE, RANKS))
    dropped = [np.where(kept, delta, 0) / density for kept, delta in zip(masks(density), deltas, strict=True)]
    expected = sum(w * one for w, one in zip(WEIGHTS, dropped, strict=True))
    np.testing.assert_allclose(merged("dare", density=density), expected, atol=1e-11)
    elected = 2 * references.elected_mean(dropped, WEIGHTS)
    np.testing.assert_allclose(merged("dare-ties", density=density, factor=2.0), elected, atol=1e-11)


def test_dare_is_right_on_average() -> None:
    adapters = references.adapters_of((6, 5), (2, 2))
    expected = sum(references.deltas_of(adapters))
    means = [
        merge(adapters, METHODS["dare"](density=0.5), seed=seed, dtype=np.float64, cut=Cut(rank=5))
        for seed in range(100)
    ]
    found = np.mean([one.adapter["q"].delta_weight(np.float64) for one in means], axis=0)
    # each entry is the mean of 100 draws whose deviation is at most the largest |ΔW_i| of either adapter
    largest = max(np.abs(delta).max() for delta in references.deltas_of(adapters))
    assert np.abs(found - expected).max() < 5 * np.sqrt(2) * largest / np.sqrt(100)
    assert np.abs(means[0].adapter["q"].delta_weight(np.float64) - expected).max() > largest / 2


def test_without_dropping_or_trimming_both_are_the_sum() -> None:
    linear = merged("linear")
    for name in ("dare", "magnitude-prune"):
        np.testing.assert_allclose(merged(name, density=1.0), linear, atol=1e-12)


def test_where_both_signs_have_the_same_mass_none_is_elected() -> None:
    [one] = references.adapters_of(SHAPE, (2,))
    done = merge([one, one], METHODS["ties"](density=1.0), weights=[1.0, -1.0], dtype=np.float64)
    assert done.adapter["q"].norm() == 0.0


@pytest.mark.parametrize("held", [1, 1 << 19])
def test_the_k_th_largest_magnitude_is_that_of_a_sort(held: int) -> None:
    random = np.random.default_rng(0)
    numbers = np.concatenate(
        [
            random.standard_normal(500) * 10.0 ** random.integers(-300, 300, 500),
            np.full(100, -0.1),  # a long run of equal ones
            np.nextafter(0.1, np.arange(100) % 2),  # neighbours of them: told apart by the last bits alone
            np.zeros(50),
            [np.finfo(np.float64).tiny / 8, np.finfo(np.float64).max],
        ]
    )
    random.shuffle(numbers)
    ordered = np.sort(np.abs(numbers))[::-1]
    for place in [1, 2, 49, 250, *range(300, 620, 7), len(numbers) - 51, len(numbers)]:
        assert largest_magnitude(lambda: np.array_split(numbers, 7), place, held=held) == ordered[place - 1]


@pytest.mark.parametrize("kept", [0, 1 << 21, 1 << 24])
def test_any_rows_at_any_time_are_the_same_numbers(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a matrix has several blocks, rows cross from one to the next, and none, some or all of them are kept."""
    monkeypatch.setattr(dense, "KEPT", kept)
    shape = (5, 1 << 19)
    assert len(list(row_blocks(shape))) == 3
    adapters = references.adapters_of(shape, (2, 2))
    parts = Parts("q", CommonSites.of(adapters).pairs("q", np.float64), np.array([1.0, 0.5]))
    for name in ("dare", "magnitude-prune") if kept == 0 else ("dare",):
        result = METHODS[name](density=0.3)(parts)
        assert isinstance(result, Rows)
        whole = result.rows(slice(0, 5))
        assert whole.shape == shape
        for rows in (slice(0, 1), slice(1, 4), slice(4, 5), slice(1, 3)):
            assert np.array_equal(result.rows(rows), whole[rows])
        assert 0.3 < np.count_nonzero(whole) / whole.size < 0.6 + 1e-6


def test_no_whole_matrix_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 24 blocks of a million numbers, of which 2 are kept: working memory is that of a few blocks."""
    monkeypatch.setattr(dense, "KEPT", 2 << 20)
    shape = (24, 1 << 20)
    adapters = references.adapters_of(shape, (1, 1))
    parts = Parts("q", CommonSites.of(adapters).pairs("q", np.float64), np.array([1.0, 0.5]))
    tracemalloc.start()
    result = METHODS["ties"](density=0.3)(parts)
    assert isinstance(result, Rows)
    for row in (7, 8, 9, 10, 7):
        result.rows(slice(row, row + 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 14 * (8 << 20)


@pytest.mark.parametrize("name", [member.name for member in METHODS if hasattr(member, "density")])
@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_a_density_is_a_share(name: str, density: float) -> None:
    with pytest.raises(LorascopeError, match="density: there is no such share"):
        METHODS[name](density=density)
