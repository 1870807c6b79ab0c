"""``LowRank`` against the dense matrix, in every layout and dtype; errors name the tensor."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from lorascope.adapter import LowRank, Update
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parts, built
from lorascope.testing import CONSTANT, updates

UNIT = np.finfo(np.float64).eps


def size(update):
    B, A, scale = update.factors(np.float64)
    return abs(scale) * np.linalg.norm(B) * np.linalg.norm(A)


@given(update=updates())
def test_norm_and_apply_agree_with_the_dense_matrix(update):
    dense = update.scale * (update.B @ update.A)
    atol = CONSTANT * UNIT * size(update)
    assert abs(update.norm() - np.linalg.norm(dense)) <= atol
    x = np.random.default_rng(0).standard_normal((2, 3, update.shape[1]))
    np.testing.assert_allclose(update.apply(x), x @ dense.T, rtol=0, atol=atol * np.linalg.norm(x))
    np.testing.assert_allclose(update.delta_weight(np.float64), dense, rtol=0, atol=atol)


def test_the_norm_survives_ill_conditioned_factors():
    rng = np.random.default_rng(0)
    M = np.diag([1e6, 1.0, 1e-6])
    B, A = rng.standard_normal((20, 3)), rng.standard_normal((3, 10))
    update = LowRank(B @ np.linalg.inv(M), M @ A)
    assert update.norm() == pytest.approx(np.linalg.norm(B @ A), rel=1e-12)


def test_layouts_of_the_base_weight():
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((4, 2)), rng.standard_normal((2, 18))
    dense = 0.5 * B @ A
    plain = LowRank(B, A, 0.5)
    transposed = LowRank(B, A, 0.5, is_transposed=True)
    convolution = LowRank(B, A, 0.5, layer="conv2d", kernel=(2, 3, 3))
    for update, shape, expected in (
        (plain, (4, 18), dense),
        (transposed, (18, 4), dense.T),
        (convolution, (4, 2, 3, 3), dense.reshape(4, 2, 3, 3)),
    ):
        assert update.base_shape == shape and update.shape == (4, 18)
        np.testing.assert_allclose(update.delta_weight(np.float64), expected, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float32])
def test_narrow_dtypes_widen_on_demand(dtype):
    B, A = np.ones((3, 2), dtype), np.ones((2, 3), dtype)
    update = LowRank(B, A)
    assert update.dtype == np.dtype(dtype).name
    assert update.B.dtype == dtype and update.factors().B.dtype == np.float32
    assert update.norm() == pytest.approx(6.0)
    mixed = LowRank(B, A.astype(np.float64))
    assert mixed.dtype == f"{np.dtype(dtype).name}/float64"


def test_updates_are_immutable():
    B = np.ones((3, 2))
    update = LowRank(B, np.ones((2, 3)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        update.scale = 2.0  # pyright: ignore[reportAttributeAccessIssue]  (that it cannot is the test)
    with pytest.raises(ValueError, match="read-only"):
        update.B[0, 0] = 5.0
    assert B.flags.writeable
    assert np.shares_memory(update.B, B)
    assert isinstance(update, Update)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["B", "A"])
def test_non_finite_values_name_their_tensor(bad, which):
    B, A = np.ones((3, 2)), np.ones((2, 3))
    (B if which == "B" else A)[0, 0] = bad
    update = LowRank(B, A, keys=("q.lora_B.weight", "q.lora_A.weight"))
    for call in (update.factors, update.norm, update.delta_weight, lambda: update.apply(np.ones(3))):
        with pytest.raises(AdapterError, match=f"non-finite value in q.lora_{which}.weight"):
            call()


def test_a_value_too_large_for_the_dtype_is_refused():
    update = LowRank(np.full((1, 1), 1e300), np.ones((1, 1)))
    with pytest.raises(AdapterError, match="finite numbers in float32"):
        update.factors(np.float32)
    assert update.norm() == pytest.approx(1e300)


@pytest.mark.parametrize(("B", "A"), [((3, 2), (3, 3)), ((3,), (1, 3)), ((3, 2, 1), (2, 3))])
def test_factors_that_make_no_product_are_refused(B, A):
    with pytest.raises(AdapterError, match="do not make a product"):
        LowRank(np.ones(B), np.ones(A))


def test_bad_scales_and_kernels_are_refused():
    B, A = np.ones((3, 2)), np.ones((2, 9))
    with pytest.raises(AdapterError, match="scale is not a finite number"):
        LowRank(B, A, scale=np.nan)
    with pytest.raises(AdapterError, match=r"kernel does not fit .*expected 8 columns, found 9"):
        LowRank(B, A, layer="conv2d", kernel=(2, 2, 2))


def test_a_matrix_takes_the_layout_of_its_base():
    update = LowRank(np.ones((3, 2)), np.arange(24.0).reshape(2, 12))
    resolved = update.resolved((3, 3, 2, 2))
    assert (resolved.layer, resolved.kernel, resolved.base_shape) == ("conv2d", (3, 2, 2), (3, 3, 2, 2))
    np.testing.assert_array_equal(resolved.delta_weight(), update.delta_weight().reshape(3, 3, 2, 2))
    assert resolved.resolved((3, 3, 4)).layer == "conv1d"
    assert update.resolved((3, 12)).layer == "linear"
    assert update.transposed(True).resolved((12, 3)).base_shape == (12, 3)
    for shape in ((12, 3), (3, 13), (3, 5, 2), ()):
        with pytest.raises(AdapterError, match="base weight"):
            update.resolved(shape)


def test_a_difference_in_the_layout_of_its_base_is_not_turned():
    update = built("full", Parts("s", {"diff": np.ones((3, 2))}))
    assert update.transposed(False) is update
    with pytest.raises(AdapterError, match=r"the base stores this weight as \[in, out\]"):
        update.transposed(True)
    np.testing.assert_array_equal(
        LowRank(np.ones((3, 1)), np.ones((1, 2))).transposed(True).delta_weight(), np.ones((2, 3))
    )


def test_singular_values_out_of_range_are_an_error_that_names_the_site() -> None:
    from lorascope.adapter import Adapter
    from lorascope.adapter.spectra import spectra_of
    from lorascope.formats.parametrisation import Parts
    from lorascope.formats.parametrisations.loha import build_loha

    large = np.full((3, 1), 1e75)
    tensors = {"w1_a": large, "w1_b": large.T, "w2_a": large, "w2_b": large.T}
    update = build_loha(Parts("q", tensors)).rescaled(1e9)  # the entries are in range, the norm is not
    with pytest.raises(AdapterError, match=r"q: .*beyond the range"):
        spectra_of(Adapter({"q": update}))
