"""All pairs at once against pair by pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lorascope.adapter import Adapter, LowRank
from lorascope.compare import pairwise, pairwise_reference
from lorascope.compare.pairwise import TOLERANCE
from lorascope.symmetry import gauged, random_gauge
from lorascope.testing import CONSTANT, adapters

UNIT = float(np.finfo(np.float64).eps)


def reaches(some: list[Adapter]) -> np.ndarray:
    return np.array(
        [sum(abs(u.scale) * np.linalg.norm(u.B) * np.linalg.norm(u.A) for u in one.values()) for one in some]
    )


@given(some=st.lists(adapters(shapes=((9, 7), (5, 12))), min_size=2, max_size=5))
def test_the_fast_way_is_the_slow_one(some: list[Adapter]) -> None:
    fast, slow = pairwise(some), pairwise_reference(some)
    sizes = reaches(some)
    assert (np.abs(fast.gram - slow.gram) <= CONSTANT * UNIT * np.outer(sizes, sizes)).all()
    room = TOLERANCE * slow.distance + CONSTANT * UNIT * np.add.outer(sizes, sizes)
    assert (np.abs(fast.distance - slow.distance) <= room).all()


def test_near_duplicates_are_recomputed_and_keep_their_digits() -> None:
    random = np.random.default_rng(0)
    one = Adapter({"q": LowRank(random.standard_normal((64, 4)), random.standard_normal((4, 64)))})
    q = one["q"]
    assert isinstance(q, LowRank)
    near = one.with_sites({"q": replace(q, scale=1 + 1e-9)})
    turned = gauged(one, lambda rank: random_gauge(rank, condition=100.0, rng=random))
    far = Adapter({"q": LowRank(random.standard_normal((64, 4)), random.standard_normal((4, 64)))})
    found = pairwise([one, near, turned, far])
    assert found.recomputed == 3
    assert abs(found.distance[0, 1] / one.norm() - ((1 + 1e-9) - 1)) < 1e-15
    assert found.distance[0, 2] <= CONSTANT * UNIT * 100 * reaches([one, turned]).max()
    expanded = np.sqrt(abs(found.gram[0, 0] + found.gram[1, 1] - 2 * found.gram[0, 1]))
    assert abs(expanded / one.norm() - 1e-9) > 1e-10, "the expansion alone would do: the test shows nothing"


def test_missing_sites_are_zero_and_ranks_may_be_mixed() -> None:
    random = np.random.default_rng(0)
    some = [
        Adapter({s: LowRank(random.standard_normal((6, r)), random.standard_normal((r, 5))) for s in sites})
        for sites, r in (("ab", 1), ("b", 7), ("abc", 3), ("", 1))
    ]
    fast, slow = pairwise(some), pairwise_reference(some)
    assert np.allclose(fast.gram, slow.gram, atol=1e-12) and np.allclose(fast.distance, slow.distance, atol=1e-12)
    assert fast.norms[3] == 0 and np.isnan(fast.cosine[3]).all()


def test_many_blocks() -> None:
    random = np.random.default_rng(0)
    some = [
        Adapter({"q": LowRank(random.standard_normal((6, 300)), random.standard_normal((300, 5)))}) for _ in range(9)
    ]
    assert np.allclose(pairwise(some).gram, pairwise_reference(some).gram, rtol=1e-12, atol=1e-9)
