"""The law helpers fail on functions that break the law, and say which law and by how much."""

import numpy as np
import pytest
import torch
from hypothesis import given

from lorascope.adapter import Adapter
from lorascope.nn import GLFeatures
from lorascope.symmetry import norm
from lorascope.testing import adapters, assert_equivariant, assert_invariant, factor_pairs

RNG = np.random.default_rng(0)
PAIR = RNG.standard_normal((5, 3)), RNG.standard_normal((3, 4))
TENSORS = tuple(map(torch.as_tensor, PAIR))
W = RNG.standard_normal((5, 5))


@given(pair=factor_pairs())
def test_what_keeps_the_laws_passes(pair):
    assert_invariant(lambda B, A: {"norm": norm(B, A), "delta": B @ A}, pair)
    assert_equivariant(lambda B, A: (2.0 * B, -A), pair)


@given(adapter=adapters())
def test_adapters_are_gauged_site_by_site(adapter):
    assert_invariant(lambda adapter: [update.norm() for update in adapter.values()], adapter, sensitivity=2.0)


def raw_norm(B, A):
    return (B * B).sum()


def padded_rank(B, A):
    """Invariant to every gauge, blind to nothing else: the rank that the factors declare."""
    return float(B.shape[-1])


def first_direction(B, A):
    """A function of the order in which the rank is written, in a gauge-fixed way that permutation breaks."""
    return B[..., :, :1] @ A[..., :1, :]


@pytest.mark.parametrize("pair", [PAIR, TENSORS], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("function", "law"),
    [
        (raw_norm, r"raw_norm is not invariant under GL\(r\) with cond\(M\) = 100: value moved by .*allowed"),
        (padded_rank, "padded_rank is not invariant under rank padding: value moved by"),
        (first_direction, r"not invariant under GL\(r\)"),
        (lambda B, A: B.shape[-1] * [1.0], "not invariant under rank padding: the value has other parts"),
        (lambda B, A: B @ B.T if len(B) == 0 else A @ A.T, "not invariant"),
    ],
)
def test_functions_that_break_invariance(pair, function, law):
    with pytest.raises(AssertionError, match=law):
        assert_invariant(function, pair)


def test_a_permutation_alone_is_caught():
    with pytest.raises(AssertionError, match="not invariant under rank permutation"):
        assert_invariant(first_direction, PAIR, trials=0, seed=1)


def test_nan_in_other_places_is_caught():
    with pytest.raises(AssertionError, match="value is NaN in other places"):
        assert_invariant(lambda B, A: np.nan if B.shape[-1] > 3 else 1.0, PAIR)
    assert_invariant(lambda B, A: np.nan, PAIR)


@pytest.mark.parametrize(
    "function",
    [
        lambda B, A: (B + 1.0, A),
        lambda B, A: (abs(B), A),
        lambda B, A: (B, A / np.linalg.norm(A)),
        lambda B, A: (A.T, B.T),
    ],
    ids=["bias", "pointwise", "gauge-dependent norm", "swap"],
)
def test_functions_that_break_equivariance(function):
    with pytest.raises(AssertionError, match=r"not equivariant under GL\(r\)"):
        assert_equivariant(function, PAIR)


def test_bigger_groups():
    def linear(B, A):
        return W @ B, A

    assert_equivariant(linear, PAIR, group="GL(r)×GL(r)")
    with pytest.raises(AssertionError, match=r"not equivariant under GL\(out\)"):
        assert_equivariant(linear, PAIR, group="GL(out)")
    with pytest.raises(AssertionError, match=r"not invariant under GL\(r\)×GL\(r\)"):
        assert_invariant(norm, PAIR, group="GL(r)×GL(r)")
    with pytest.raises(ValueError, match="group must be one of"):
        assert_invariant(norm, PAIR, group="SO(3)")


def test_features_and_lists_of_them():
    x = GLFeatures.from_factors(*(tensor[None, None] for tensor in TENSORS))
    assert_equivariant(lambda x: x, x)
    assert_invariant(lambda stacks: [part.product() for part in stacks], [x, x])
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda x: GLFeatures(x.out.abs(), x.in_, x.inv), x)
    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(lambda stacks: [part.out for part in stacks], [x, x])


def test_an_adapter_function_that_reads_factors_fails():
    from lorascope.adapter import LowRank

    adapter = Adapter({"q": LowRank(*PAIR)})
    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(lambda adapter: np.abs(adapter["q"].A).max(), adapter)


def test_float32_is_allowed_its_rounding_and_no_more():
    narrow = tuple(factor.astype(np.float32) for factor in PAIR)
    assert_invariant(lambda B, A: B @ A, narrow)
    with pytest.raises(AssertionError):
        assert_invariant(lambda B, A: B @ A, tuple(PAIR), constant=1e-6)


def test_other_inputs_are_refused():
    with pytest.raises(TypeError, match="expected \\(B, A\\), an Adapter, GLFeatures"):
        assert_invariant(lambda x: 0.0, np.ones(3))
