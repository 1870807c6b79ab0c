"""float16 widened by whole-number operations: every number there is, and what is none."""

import numpy as np
import pytest

from lorascope.adapter import LowRank
from lorascope.adapter.half import BEYOND, singles
from lorascope.adapter.widening import LARGE, converted
from lorascope.errors import AdapterError

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE = np.isfinite(EVERY)


def test_every_finite_number_is_itself_and_keeps_its_sign():
    found = singles(EVERY)
    expected = EVERY[FINITE].astype(np.float32)
    assert (found[FINITE].view(np.uint32) == expected.view(np.uint32)).all()
    assert np.abs(found[FINITE]).max() < BEYOND
    assert (np.abs(found[~FINITE]) >= BEYOND).all()


@pytest.fixture
def flushed():
    """A thread that takes subnormal numbers for zero."""
    torch = pytest.importorskip("torch")
    assert torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def test_subnormal_numbers_are_themselves_where_the_thread_flushes_those_of_float32(flushed):
    found = singles(EVERY)
    room = np.full(EVERY.size, np.nan, np.float32)
    assert np.array_equal(singles(EVERY, out=room), found)
    bits = found.view(np.uint32)  # whole numbers: nothing that compares them flushes
    halves = EVERY.view(np.uint16)
    subnormal = (halves & 0x7C00 == 0) & (halves & 0x3FF != 0)
    assert subnormal.sum() == 2 * 1023
    expected = (halves[subnormal] & 0x3FF).astype(np.float32) * np.float32(2.0**-24)
    assert (bits[subnormal] & 0x7FFFFFFF == expected.view(np.uint32)).all()
    assert (bits[subnormal] >> 31 == halves[subnormal] >> 15).all()
    assert (np.abs(found[~FINITE]) >= BEYOND).all()
    assert np.array_equal(converted(np.resize(EVERY[FINITE], LARGE), np.dtype(np.float32)), found[FINITE][:LARGE])


def test_all_finite_numbers_are_the_same_bits_whether_the_thread_flushes_or_not(request):
    plain = singles(EVERY)[FINITE].view(np.uint32)
    request.getfixturevalue("flushed")
    assert np.array_equal(singles(EVERY)[FINITE].view(np.uint32), plain)


def test_the_result_may_be_written_to_a_view_and_the_numbers_may_lie_in_any_order():
    halves = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float16)
    room = np.full(100, np.nan, np.float32)
    found = singles(halves.T, out=room[10:50].reshape(8, 5))
    assert (found == halves.T.astype(np.float32)).all()
    assert np.isnan(room[:10]).all() and np.isnan(room[50:]).all()
    assert (room[10:50].reshape(8, 5) == found).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_arrays_are_converted_as_by_numpy_whatever_is_in_them(dtype):
    finite = np.resize(EVERY[FINITE], LARGE + 3)
    for stored in (finite, np.append(finite, np.float16(np.nan)), np.append(finite, -np.float16(np.inf))):
        found = converted(stored, np.dtype(dtype))
        assert found.dtype == dtype
        assert np.array_equal(found, stored.astype(dtype), equal_nan=True)


def test_an_infinite_number_of_a_large_factor_is_refused():
    B = np.zeros((LARGE, 1), np.float16)
    B[7] = np.inf
    with pytest.raises(AdapterError, match="non-finite value in B"):
        LowRank(B, np.ones((1, 2), np.float16)).factors(np.float32)
