"""Stacks of adapters: names, order, padding, errors; and the shape checks that run in tests only."""

from pathlib import Path

import jaxtyping
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from lorascope.adapter import Adapter, LowRank, Provenance
from lorascope.errors import AdapterError
from lorascope.formats.parametrisations.loha import LoHa
from lorascope.symmetry import gauged, norm, random_gauge, stack_adapters
from lorascope.testing import adapters, tolerance


@given(adapter=adapters())
def test_stacks_hold_every_site_once_with_its_delta(adapter):
    stacks = stack_adapters([adapter, adapter])
    assert sorted(name for stack in stacks for name in stack.names) == sorted(adapter)
    assert len({stack.shape for stack in stacks}) == len(stacks)
    for stack in stacks:
        for site, name in enumerate(stack.names):
            dense = adapter[name].delta_weight(np.float64)
            for index in range(2):
                found = stack.B[index, site] @ stack.A[index, site]
                np.testing.assert_allclose(found, dense, rtol=0, atol=1e-12 * max(1e-300, np.abs(dense).max()) * 1e4)


@given(adapter=adapters())
def test_a_gauged_adapter_is_the_same_finetune(adapter):
    rng = np.random.default_rng(0)
    moved = gauged(adapter, lambda rank: random_gauge(rank, condition=100.0, rng=rng))
    for name, update in adapter.items():
        B, A, scale = update.factors(np.float64)
        atol = tolerance(B, A, gauge_condition=100.0) * abs(scale) * max(float(norm(B, A)), 1e-300)
        np.testing.assert_allclose(
            moved[name].delta_weight(np.float64), update.delta_weight(np.float64), rtol=0, atol=atol
        )


def test_a_gauged_convolution_keeps_its_kernel():
    update = LowRank(np.ones((4, 2)), np.ones((2, 18)), layer="conv2d", kernel=(2, 3, 3), alpha=4.0)
    moved = gauged(Adapter({"conv": update}), lambda rank: 2 * np.eye(rank))["conv"]
    assert moved.base_shape == (4, 2, 3, 3) and moved.layer == "conv2d" and moved.alpha == 4.0


def test_the_order_of_sites_can_be_given():
    adapter = Adapter({name: LowRank(np.ones((2, 1)), np.ones((1, 2))) for name in "abc"})
    [stack] = stack_adapters([adapter], sites=["c", "a"])
    assert stack.names == ("c", "a")


def test_a_missing_site_and_another_shape_are_named():
    one = Adapter({"q": LowRank(np.ones((2, 1)), np.ones((1, 2)))})
    lacking = Adapter({"k": LowRank(np.ones((2, 1)), np.ones((1, 2)))}, Provenance(path=Path("b.safetensors")))
    with pytest.raises(AdapterError, match=r"b\.safetensors: q: the adapter lacks a site"):
        stack_adapters([one, lacking])
    wider = Adapter({"q": LowRank(np.ones((2, 1)), np.ones((1, 3)))})
    with pytest.raises(AdapterError, match=r"q: .*another shape .*expected \[2, 2\], found \[2, 3\]"):
        stack_adapters([one, wider])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["B", "A"])
def test_a_number_that_is_not_finite_is_refused_by_the_name_of_its_tensor(side, value):
    rng = np.random.default_rng(0)
    factors = {name: (rng.standard_normal((4, 2)), rng.standard_normal((2, 3))) for name in "qkv"}
    good = Adapter({name: LowRank(B.copy(), A.copy()) for name, (B, A) in factors.items()})
    (factors["k"][0] if side == "B" else factors["k"][1])[1, 1] = value
    keys = ("k.lora_B", "k.lora_A")
    sites = {name: LowRank(B, A, 0.0, keys=keys if name == "k" else ("", "")) for name, (B, A) in factors.items()}
    bad = Adapter(sites, Provenance(path=Path("b.safetensors")))
    with pytest.raises(AdapterError, match=rf"b\.safetensors: non-finite value in k\.lora_{side}"):
        stack_adapters([good, bad])


def test_what_the_dtype_cannot_hold_is_refused_by_the_name_of_its_tensor():
    bad = Adapter({"q": LowRank(np.full((4, 1), 1e60), np.ones((1, 3)), keys=("q.up", "q.down"))})
    stack_adapters([bad])
    with pytest.raises(AdapterError, match=r"non-finite value in q\.up \(expected finite numbers in float32"):
        stack_adapters([bad], dtype=np.float32)


def test_factors_stored_unlike_are_stacked_as_each_by_itself():
    rng = np.random.default_rng(0)
    dtypes = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)
    adapters = []
    for number in range(6):
        sites = {}
        for place, name in enumerate("qkv"):
            rank, dtype = (number + place) % 4, dtypes[(number * place) % 4]
            B, A = rng.standard_normal((6, rank)).astype(dtype), rng.standard_normal((rank, 5)).astype(np.float32)
            sites[name] = LowRank(B, A, scale=-0.3 * number)
        if number == 3:
            shapes = {"w1_a": (6, 2), "w1_b": (2, 5), "w2_a": (6, 2), "w2_b": (2, 5)}
            parts = {role: rng.standard_normal(own) for role, own in shapes.items()}
            sites["v"] = LoHa(stored=parts, shape=(6, 5), dim=2, scale=0.7)
        adapters.append(Adapter(sites))
    [stack] = stack_adapters(adapters)
    for i, adapter in enumerate(adapters):
        for j, update in enumerate(adapter.values()):
            B, A, scale = update.factors(np.float64)
            assert (stack.B[i, j, :, : update.rank] == scale * B).all()
            assert (stack.A[i, j, : update.rank] == A).all()
            assert not stack.B[i, j, :, update.rank :].any() and not stack.A[i, j, update.rank :].any()


def test_shapes_are_checked_under_pytest():
    with pytest.raises(jaxtyping.TypeCheckError):
        norm(np.ones((3, 2)), np.ones((3, 4)))


@pytest.mark.parametrize("size", [1e152, 1e200])
def test_an_update_whose_square_is_no_number_is_refused_by_name(size):
    good = Adapter({"q": LowRank(np.ones((4, 1)), np.ones((1, 3)))})
    bad = Adapter({"q": LowRank(np.ones((4, 1)), np.ones((1, 3)), scale=-size)})
    with pytest.raises(AdapterError, match="too large to compute with") as caught:
        stack_adapters([good, bad])
    assert caught.value.key == "q"
    even = Adapter({"q": LowRank(np.full((4, 1), size), np.full((1, 3), 1 / size))})  # a gauge, and nothing more
    assert np.isfinite(stack_adapters([good, even])[0].svd.S).all()
