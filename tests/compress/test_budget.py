"""Ranks within a budget of parameters, against exhaustive search."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.compress import allocated
from lorascope.errors import LorascopeError

ROUNDING = 1e-12


@st.composite
def cases(draw: Any) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, int]], int]:
    """One to four sites of up to four directions, whose costs and values differ, and a budget for some of them."""
    count = draw(st.integers(1, 4))
    values = st.lists(st.integers(1, 50), min_size=1, max_size=4)
    spectra = {f"s{n}": np.array(sorted(draw(values), reverse=True), float) for n in range(count)}
    shapes = {name: (draw(st.integers(1, 9)), draw(st.integers(1, 9))) for name in spectra}
    least = min(map(sum, shapes.values()))
    most = sum(len(S) * sum(shapes[name]) for name, S in spectra.items())
    return spectra, shapes, draw(st.integers(least, most + 3))


def best(spectra: dict[str, np.ndarray], shapes: dict[str, tuple[int, int]], budget: int) -> float:
    """The largest share of Σ σ² of all choices of ranks."""
    names = list(spectra)
    total = sum(float(np.sum(S**2)) for S in spectra.values())
    shares = [
        sum(float(np.sum(spectra[name][:rank] ** 2)) for name, rank in zip(names, ranks, strict=True)) / total
        for ranks in product(*(range(len(spectra[name]) + 1) for name in names))
        if sum(rank * sum(shapes[name]) for name, rank in zip(names, ranks, strict=True)) <= budget
    ]
    return max(shares)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_choice_is_as_near_the_best_as_one_direction_and_nothing_exceeds_the_bound(case: Any) -> None:
    spectra, shapes, budget = case
    found = allocated(spectra, shapes, budget)
    exact = best(spectra, shapes, budget)
    total = sum(float(np.sum(S**2)) for S in spectra.values())
    assert found.parameters == sum(rank * sum(shapes[name]) for name, rank in found.ranks.items()) <= budget
    share = sum(float(np.sum(spectra[name][:rank] ** 2)) for name, rank in found.ranks.items()) / total
    assert found.kept == pytest.approx(share, abs=ROUNDING)
    assert found.kept <= exact + ROUNDING
    assert exact <= found.bound + ROUNDING
    assert found.bound - found.kept <= max(float(np.max(S)) ** 2 for S in spectra.values()) / total + ROUNDING


@settings(max_examples=50, deadline=None)
@given(cases())
def test_where_all_directions_cost_the_same_the_choice_is_the_best(case: Any) -> None:
    spectra, _, budget = case
    shapes = dict.fromkeys(spectra, (2, 3))
    found = allocated(spectra, shapes, max(budget, 5))
    assert found.kept == pytest.approx(best(spectra, shapes, max(budget, 5)), abs=ROUNDING)


def test_what_has_to_stay_stays() -> None:
    spectra = {"q": np.array([3.0, 2.0]), "k": np.array([0.1])}
    shapes = dict.fromkeys(spectra, (2, 2))
    assert allocated(spectra, shapes, 8).ranks == {"q": 2, "k": 0}
    assert allocated(spectra, shapes, 8, {"k": 1}).ranks == {"q": 1, "k": 1}


@pytest.mark.parametrize(("budget", "least"), [(3, {}), (7, {"q": 1, "k": 1}), (0, {}), (-5, {})])
def test_a_budget_without_room_is_refused(budget: int, least: dict[str, int]) -> None:
    spectra = {"q": np.array([3.0]), "k": np.array([0.1])}
    with pytest.raises(LorascopeError, match=r"budget.*expected at least [48] parameters"):
        allocated(spectra, dict.fromkeys(spectra, (2, 2)), budget, least)
