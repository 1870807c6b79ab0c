"""Rounding to few bits: within half a step, exact packing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.compress.quantise import BITS, BLOCK, Quantised, quantised, restored, sizes
from lorascope.errors import AdapterError, LorascopeError

numbers = st.lists(
    st.floats(-1e30, 1e30, allow_subnormal=True) | st.sampled_from([0.0, 1e-44, 3e-43, 1e-310, 1.0, -1.0]),
    min_size=1,
    max_size=2 * BLOCK + 3,
)


@pytest.mark.parametrize("bits", BITS)
@given(values=numbers)
def test_no_number_moves_by_more_than_half_a_step(bits: int, values: list[float]) -> None:
    array = np.array(values)
    stored = quantised(array, bits)
    assert (stored.codes.nbytes, stored.steps.size) == sizes(len(values), bits)
    steps = np.repeat(stored.steps.astype(np.float64), BLOCK)[: len(values)]
    moved = np.abs(restored(stored).astype(np.float64) - array)
    # float32 rounds the product of a code and a step once: by half a unit of the result, or of the smallest number
    rounding = np.abs(array) * 2.0**-23 + 2.0**-149
    assert bool((moved <= steps / 2 * (1 + 1e-12) + rounding).all())
    assert bool((steps * (127 if bits == 8 else 7) >= np.abs(array)).all())


@pytest.mark.parametrize("bits", BITS)
def test_every_code_is_told_from_every_other(bits: int) -> None:
    levels = 127 if bits == 8 else 7
    codes = np.resize(np.arange(-levels, levels + 1), 4 * BLOCK + 1).astype(float)
    codes[::BLOCK] = levels  # so that the step of each block is 1
    np.testing.assert_array_equal(restored(quantised(codes, bits)), codes)


def test_what_is_stored_again_does_not_move() -> None:
    values = np.random.default_rng(0).standard_normal(1000)
    once = restored(quantised(values, 4))
    np.testing.assert_allclose(restored(quantised(once, 4)), once, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_what_has_no_step_is_refused(value: float) -> None:
    with pytest.raises(AdapterError, match="not finite, or too large"):
        quantised(np.array([1.0, value]), 8)


def test_bad_codes_are_refused() -> None:
    with pytest.raises(LorascopeError, match="number of bits"):
        quantised(np.ones(2), 3)
    good = quantised(np.ones(70), 8)
    bad: list[tuple[Any, Any, str]] = [
        (good.codes[:-1], good.steps, "do not fit"),
        (good.codes, good.steps[:1], "do not fit"),
        (good.codes, good.steps * np.float32(np.nan), "a step is not"),
        (good.codes, -good.steps, "a step is not"),
        (good.codes, np.full(2, 3e38, np.float32), "beyond the range"),
    ]
    for codes, steps, text in bad:
        with pytest.raises(AdapterError, match=text):
            restored(Quantised(codes, steps, 70, 8))
