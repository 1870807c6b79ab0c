"""Sketches and fingerprints: invariant, linear, and near for what is near."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import LorascopeError
from lorascope.retrieve import are_neighbours, fingerprint, measured, miss_probability, sketch_of
from lorascope.retrieve.fingerprint import HELD, cells_of
from lorascope.retrieve.sketch import REACH, SIZE
from lorascope.symmetry import gauged, random_gauge
from lorascope.testing import CONSTANT, adapters
from retrieve.variants import changed

UNIT = float(np.finfo(np.float64).eps)


def planted(seed: int, rank: int = 4, sites: int = 3, shape: tuple[int, int] = (40, 30)) -> Adapter:
    random = np.random.default_rng(seed)
    return Adapter(
        {
            f"layers.{k}.q": LowRank(random.standard_normal((shape[0], rank)), random.standard_normal((rank, shape[1])))
            for k in range(sites)
        }
    )


@settings(max_examples=20)
@given(one=adapters(max_side=12), seed=st.integers(0, 99))
def test_the_sketch_is_of_the_update_and_not_of_its_factors(one: Adapter, seed: int) -> None:
    random = np.random.default_rng(seed)
    turned = gauged(one, lambda rank: random_gauge(rank, condition=30.0, rng=random))
    backwards = Adapter(dict(reversed(turned.items())))
    some = [sketch_of(adapter) for adapter in (one, turned, backwards)]
    sizes = [
        sum(abs(u.scale) * float(np.linalg.norm(u.B) * np.linalg.norm(u.A)) for u in adapter.values())
        for adapter in (one, turned)
    ]
    # |p| and |q| are √out and √in
    room = CONSTANT * UNIT * 30 * sum(sizes) * 12
    for other in some[1:]:
        assert np.abs(some[0].values - other.values).max() <= room
        assert abs(some[0].norm - other.norm) <= room


def test_the_sketch_is_linear_and_unbiased() -> None:
    one, two = planted(1), planted(2)
    both = Adapter(
        {
            site: LowRank(np.concatenate([one[site].B, -two[site].B], 1), np.concatenate([one[site].A, two[site].A]))
            for site in one
        }
    )
    difference = sketch_of(one).values - sketch_of(two).values
    assert np.allclose(difference, sketch_of(both).values, atol=1e-10)
    sizes = [np.sum(sketch_of(one, seed=seed).values ** 2) for seed in range(200)]
    # mean of 200 numbers whose relative standard deviation is at most (1 + 2/h)² − 1 to the root = 0.52
    assert np.mean(sizes) == pytest.approx(one.norm() ** 2, rel=4 * 0.52 / np.sqrt(200))


def test_the_bound_on_misses_holds_for_the_worst_update() -> None:
    """Rank one on few rows, for which the bound is nearly reached; at a reach where it can be counted."""
    one = Adapter({"q": LowRank(np.eye(64, 1) + np.eye(64, 1, -1), np.ones((1, 64)) / 8)})
    sizes = np.array([np.linalg.norm(sketch_of(one, seed=seed).values) / one.norm() for seed in range(500)])
    for reach in (1.5, 2.0):
        assert np.mean(sizes > reach) <= miss_probability(reach) + 3 / np.sqrt(500)
    assert sizes.max() < REACH and miss_probability(REACH, SIZE) < 2e-11


def test_variants_of_one_adapter_have_neighbouring_fingerprints_and_others_have_not() -> None:
    random = np.random.default_rng(0)
    others = [fingerprint(sketch_of(planted(seed))) for seed in range(100, 130)]
    for seed in range(10):
        one = planted(seed)
        text = fingerprint(sketch_of(one))
        for name, variant in changed(one, random):
            assert measured(one, variant).relative_distance < HELD
            assert are_neighbours(text, fingerprint(sketch_of(variant))), name
        assert not any(are_neighbours(text, other) for other in others)


def test_another_shape_or_layer_is_another_sketch() -> None:
    one = planted(1)
    moved = Adapter({f"other.{site}": update for site, update in one.items()})
    assert measured(one, moved).inner == 0 and measured(one, moved).shared == 0
    assert not are_neighbours(fingerprint(sketch_of(one)), fingerprint(sketch_of(moved)))


def test_a_zero_update_and_what_is_no_fingerprint() -> None:
    zero = Adapter({"q": LowRank(np.zeros((4, 2)), np.ones((2, 3)))})
    assert fingerprint(sketch_of(zero)) == "ls1.zero" and cells_of("ls1.zero") is None
    assert are_neighbours("ls1.zero", "ls1.zero")
    assert not are_neighbours("ls1.zero", fingerprint(sketch_of(planted(1))))
    for text in ("", "ls1.", "ls1.1.hhhh", "ls2.64.hhhhhhhhhhhhhhhh", "ls1.64.hhhhhhhhhhhhhhhz"):
        with pytest.raises(LorascopeError, match="no fingerprint"):
            are_neighbours(text, "ls1.zero")
