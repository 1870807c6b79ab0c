"""Merges taken apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank
from lorascope.compare import pairwise
from lorascope.errors import AdapterError, LorascopeError
from lorascope.merge import merge
from lorascope.retrieve import explain_merge
from lorascope.symmetry import gauged, random_gauge
from lorascope.symmetry.truncation import Cut
from retrieve.test_sketch import planted

OTHERS = [planted(seed) for seed in range(40)]
NAMES = [f"a{seed}" for seed in range(40)]


def weight_room(members: list[int], error: float, norm: float) -> float:
    """What an error of X moves the weights by at most: over the smallest singular value of the members as vectors."""
    gram = pairwise([OTHERS[k] for k in members]).gram
    return error * norm / float(np.sqrt(np.linalg.eigvalsh(gram)[0])) + 1e-12


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.7, 0.2, 0.1], [0.1, 0.3, 0.2, 0.15, 0.25], [1.0]])
def test_exactly_the_members_are_found_with_their_weights(weights: list[float]) -> None:
    members = [3, 17, 9, 30, 22][: len(weights)]
    merged = merge([OTHERS[k] for k in members], "linear", weights=weights)
    random = np.random.default_rng(0)
    turned = gauged(merged.adapter, lambda rank: random_gauge(rank, condition=10.0, rng=random))
    found = explain_merge(turned, OTHERS, NAMES)
    assert {part.name: part.place for part in found.parts} == {NAMES[k]: k for k in members}
    room = weight_room(members, merged.relative_error, found.norm)
    assert room < 1e-5
    for part in found.parts:
        assert abs(part.weight - weights[members.index(part.place)]) <= room
    assert found.weight_error is not None and found.weight_error <= 2 * room
    assert found.relative_rest <= 1.01 * merged.relative_error + 1e-12


def test_the_rest_is_exact() -> None:
    merged = merge([OTHERS[1], OTHERS[2]], "linear", weights=[0.6, 0.4], cut=Cut(rank=3), dtype=np.float64).adapter
    found = explain_merge(merged, OTHERS, NAMES)
    dense = {site: merged[site].delta_weight(np.float64) for site in merged}
    for part in found.parts:
        for site, update in OTHERS[part.place].items():
            dense[site] = dense[site] - part.weight * update.delta_weight(np.float64)
    assert found.rest == pytest.approx(np.sqrt(sum(float(np.sum(one**2)) for one in dense.values())), rel=1e-10)
    assert {part.place for part in found.parts[:2]} == {1, 2} and found.relative_rest > 0.1


def test_negative_weights_are_found_where_they_are_asked_for() -> None:
    merged = merge([OTHERS[4], OTHERS[5]], "linear", weights=[1.0, -0.5]).adapter
    signed = explain_merge(merged, OTHERS, NAMES, is_signed=True)
    assert {part.place: round(part.weight, 5) for part in signed.parts} == {4: 1.0, 5: -0.5}
    assert signed.relative_rest < 1e-6
    found = explain_merge(merged, OTHERS, NAMES)
    assert found.relative_rest > 0.1 and found.signed is not None and signed.signed is None
    assert [(part.place, part.weight) for part in found.signed.parts] == [(p.place, p.weight) for p in signed.parts]
    positive = merge([OTHERS[4], OTHERS[5]], "linear", weights=[1.0, 0.5], cut=Cut(rank=3)).adapter
    found = explain_merge(positive, OTHERS, NAMES)
    assert found.relative_rest > 0.1 and found.signed is None  # a sign is not what it lacks


def test_copies_among_the_candidates_and_what_is_no_merge() -> None:
    merged = merge([OTHERS[4], OTHERS[5]], "linear", weights=[0.5, 0.5]).adapter
    found = explain_merge(merged, [*OTHERS, OTHERS[4]], [*NAMES, "copy"])
    assert found.relative_rest < 1e-6
    own = sum(part.weight for part in found.parts if part.place in (4, 40))
    assert own == pytest.approx(0.5, abs=1e-5)
    stranger = explain_merge(planted(1000), OTHERS, NAMES)
    assert stranger.relative_rest > 0.8
    zero = Adapter({site: LowRank(np.zeros((40, 1)), np.zeros((1, 30))) for site in OTHERS[0]})
    assert explain_merge(zero, OTHERS, NAMES).parts == () and explain_merge(zero, OTHERS, NAMES).relative_rest == 0


def test_bad_input() -> None:
    q = OTHERS[0]["layers.0.q"]
    assert isinstance(q, LowRank)
    nan = OTHERS[0].with_sites({"layers.0.q": replace(q, B=np.full_like(q.B, np.nan))})
    with pytest.raises(AdapterError, match="non-finite"):
        explain_merge(OTHERS[1], [OTHERS[2], nan], ["a", "nan"])
    with pytest.raises(AdapterError, match="no candidate has a site"):
        explain_merge(planted(1, shape=(8, 8)), OTHERS, NAMES)
    with pytest.raises(LorascopeError, match="nothing to explain"):
        explain_merge(OTHERS[0], [], [])
    with pytest.raises(LorascopeError, match="no such share"):
        explain_merge(OTHERS[0], OTHERS, NAMES, smallest=1.5)
