"""Laws of every merge method, over the registry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank
from lorascope.merge import METHODS, Method, merge
from lorascope.symmetry import gauged, random_gauge
from lorascope.symmetry.truncation import Cut

SHAPES = {"layers.0.q": (12, 9), "layers.0.k": (7, 12), "layers.1.q": (12, 9)}
NAMES = METHODS.names()


def planted(seed: int, rank: int, sites: Any = tuple(SHAPES)) -> Adapter:
    """An adapter with well separated singular values, scales that are not 1, float64."""
    random = np.random.default_rng(seed)
    return Adapter(
        {
            site: LowRank(
                random.standard_normal((SHAPES[site][0], rank)) * np.linspace(1.0, 2.0, rank),
                random.standard_normal((rank, SHAPES[site][1])),
                scale=0.5 + seed / 7,
            )
            for site in sites
        }
    )


OPTIONS: dict[str, Any] = {"b-lora": {"content": ("layers.0.*",), "style": ("layers.1.*",)}}
TWO = ("b-lora", "slerp")


def method_named(name: str) -> Method:
    """A member with its default options, but for patterns that name no site of ours."""
    return METHODS[name](**OPTIONS.get(name, {}))


def dense(adapter: Adapter) -> dict[str, Any]:
    """ΔW of every site in float64."""
    return {site: adapter[site].delta_weight(np.float64) for site in adapter}


def given(name: str) -> list[Adapter]:
    """Three adapters of ranks 2, 3 and 4, one without a site; two, or like ones, for methods that take only those."""
    if name in ("ffa", "fed-sb"):
        return [planted(1, 3), like(planted(1, 3), 2, name), like(planted(1, 3), 3, name)]
    return [planted(1, 2), planted(2, 3), planted(3, 4, tuple(SHAPES)[:2])][: 2 if name in TWO else 3]


def like(adapter: Adapter, seed: int, name: str) -> Adapter:
    """Another adapter with the same A (``ffa``), or the same B and A around another core (``fed-sb``)."""
    random = np.random.default_rng(seed)
    sites: dict[str, Any] = {}
    for site, update in adapter.items():
        B, A, scale = update.factors(np.float64)
        core = random.standard_normal((B.shape[1], B.shape[1]))
        sites[site] = LowRank(random.standard_normal(B.shape) if name == "ffa" else B @ core, A, scale)
    return Adapter(sites)


def assert_same(one: Adapter, other: Adapter, tolerance: float) -> None:
    """Every ΔW alike, relative to its norm."""
    assert set(one) == set(other)
    for site, expected in dense(one).items():
        found = other[site].delta_weight(np.float64)
        assert np.linalg.norm(found - expected) <= tolerance * max(np.linalg.norm(expected), 1.0), site


@pytest.mark.parametrize("name", NAMES)
def test_the_gauge_of_the_inputs_changes_nothing_or_the_method_says_so(name: str) -> None:
    member, inputs = method_named(name), given(name)
    random = np.random.default_rng(0)
    turned = [gauged(one, lambda rank: random_gauge(rank, condition=30.0, rng=random)) for one in inputs]
    results = [merge(some, member, dtype=np.float64).adapter for some in (inputs, turned)]
    if member.invariance == "GL(r)":
        assert_same(*results, tolerance=1e-9)
    else:
        with pytest.raises(AssertionError):
            assert_same(*results, tolerance=1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].invariance == "GL(r)"])
def test_padding_scales_and_dtype_change_nothing(name: str) -> None:
    member, inputs = method_named(name), given(name)
    other: list[Adapter] = []
    for one in inputs:
        sites: dict[str, Any] = {}
        for site, update in one.items():
            B, A, scale = update.factors(np.float64)
            sites[site] = LowRank(np.pad(B * scale / 3, ((0, 0), (0, 2))), np.pad(A, ((0, 2), (0, 0))), scale=3.0)
        other.append(Adapter(sites))
    assert_same(*(merge(some, member, dtype=np.float64).adapter for some in (inputs, other)), tolerance=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_copies_of_one_adapter_give_it_where_the_method_says_so(name: str) -> None:
    member, one = method_named(name), planted(1, 3)
    merged = merge([one, one], member, weights=[0.5, 0.5], dtype=np.float64, cut=Cut(rank=3)).adapter
    if member.is_idempotent:
        assert_same(one, merged, tolerance=1e-9)
    else:
        with pytest.raises(AssertionError):
            assert_same(one, merged, tolerance=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_does_not_matter_where_the_formula_is_symmetric(name: str) -> None:
    member, inputs = method_named(name), given(name)
    weights = [0.2, 0.5, 0.3][: len(inputs)]
    order = [2, 0, 1] if len(inputs) == 3 else [1, 0]
    one = merge(inputs, member, weights=weights, dtype=np.float64).adapter
    other = merge([inputs[k] for k in order], member, weights=[weights[k] for k in order], dtype=np.float64).adapter
    if member.is_symmetric:
        assert_same(one, other, tolerance=1e-9)
    else:
        with pytest.raises(AssertionError):
            assert_same(one, other, tolerance=1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TWO])
def test_an_adapter_of_weight_0_changes_nothing(name: str) -> None:
    """Not even the bases, groups and limits that are made of all adapters."""
    member, inputs = method_named(name), given(name)
    options: dict[str, Any] = {"dtype": np.float64, "cut": Cut(rank=12)}
    one = merge([*inputs[:2], planted(9, 4)], member, weights=[0.6, 0.4, 0.0], **options).adapter
    assert_same(merge(inputs[:2], member, weights=[0.6, 0.4], **options).adapter, one, tolerance=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_error_reported_is_the_error_measured(name: str) -> None:
    """Against the same method without a cut, in float64: by the full rank that every site can have."""
    member, inputs = method_named(name), given(name)
    whole = merge(inputs, member, dtype=np.float64, cut=Cut(rank=12))
    small = merge(inputs, member, dtype=np.float16, cut=Cut(rank=2))
    assert whole.relative_error < 1e-9
    for site, exact in dense(whole.adapter).items():
        measured = np.linalg.norm(small.adapter[site].delta_weight(np.float64) - exact)
        assert small.sites[site].error == pytest.approx(measured, rel=1e-3, abs=1e-6 * np.linalg.norm(exact))
        assert small.sites[site].norm == pytest.approx(np.linalg.norm(exact), rel=1e-5, abs=1e-12)
    assert small.relative_error > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_member_says_what_it_is(name: str) -> None:
    member = method_named(name)
    assert member.name == name
    assert isinstance(member, Method)
    assert member.formula and member.reference and (type(member).__doc__ or "")
    assert member.default_weights(4).shape == (4,)
