"""Laws of every core function: invariant, the same on both libraries, one by one and batched, at mixed ranks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorascope.symmetry import (
    align,
    balance,
    distance,
    inner,
    norm,
    numerical_rank,
    pad_rank,
    principal_angles,
    random_template,
    thin_svd,
)
from lorascope.testing import assert_invariant, factor_pairs, tolerance

OUT, IN, RTOL = 7, 9, 1e-7
TEMPLATE = random_template(OUT, IN, 16, seed=0)
_rng = np.random.default_rng(1)
OTHER = _rng.standard_normal((OUT, 2)), _rng.standard_normal((2, IN))


def as_of(array, reference):
    """``array`` in the library and dtype of ``reference``, spread over its leading axes."""
    spread = np.broadcast_to(array, (*reference.shape[:-2], *array.shape)).copy()
    return (
        torch.as_tensor(spread, dtype=reference.dtype)
        if isinstance(reference, torch.Tensor)
        else spread.astype(reference.dtype)
    )


def other(B):
    return as_of(OTHER[0], B), as_of(OTHER[1], B)


def singular_part(B, A):
    """What the stabiliser of the thin SVD leaves alone."""
    U, S, Vh = thin_svd(B, A)
    return U @ (S[..., None] * Vh), (U * S[..., None, :]) @ U.mT, S[..., :1]


def balanced_part(B, A):
    half, other_half = balance(B, A)
    return half @ other_half, half @ half.mT


def angles(B, A):
    """Against a fixed update; the first exists for every update but zero."""
    return principal_angles(B, A, *other(B), rtol=RTOL)[..., :1]


FUNCTIONS = {
    "thin_svd": singular_part,
    "balance": balanced_part,
    "inner": lambda B, A: inner(B, A, *other(B), 0.5, -2.0),
    "norm": lambda B, A: norm(B, A, -2.0),
    "distance": lambda B, A: distance(B, A, *other(B), 0.5, -2.0),
    "principal_angles": angles,
    "numerical_rank": lambda B, A: numerical_rank(thin_svd(B, A).S, rtol=RTOL),
    "align": lambda B, A: align(B, A, as_of(TEMPLATE[0], B), as_of(TEMPLATE[1], B), rtol=RTOL)[:2],
}

PAIRS = factor_pairs(shape=(OUT, IN))


def allowed_for(name, B, A):
    """(magnitude, sensitivity): what the rounding is relative to, and how much more the value moves than ΔW."""
    size, S = float(norm(B, A)), thin_svd(B, A).S
    other_size = float(norm(*OTHER))
    kept = S[RTOL * S[0] < S]
    spread = float(S[0] / kept[-1]) if len(kept) else 1.0
    if name == "align":
        smallest = float(align(B, A, *TEMPLATE, rtol=RTOL).smallest) if len(kept) else 1.0
        template = np.hypot(*map(np.linalg.norm, TEMPLATE))
        return np.sqrt(size), spread * max(1.0, np.sqrt(S[0]) * template / smallest)
    return {
        "thin_svd": (size, 2.0),
        "balance": (size, 2.0),
        "inner": (size * other_size, 1.0),
        "norm": (size, 2.0),
        "distance": (size + other_size, 2.0),
        "principal_angles": (1.0, spread),
        "numerical_rank": (0.0, 1.0),
    }[name]


@pytest.mark.parametrize("name", FUNCTIONS)
@given(pair=PAIRS)
def test_is_invariant(name, pair):
    magnitude, sensitivity = allowed_for(name, *pair)
    assert_invariant(FUNCTIONS[name], pair, trials=1, magnitude=magnitude, sensitivity=sensitivity)


@pytest.mark.parametrize("name", FUNCTIONS)
@given(pairs=st.lists(PAIRS, min_size=1, max_size=4))
def test_same_values_on_both_libraries_one_by_one_and_batched_at_mixed_ranks(name, pairs):
    function = FUNCTIONS[name]
    one_by_one = [parts(function(B, A)) for B, A in pairs]
    rank = max(B.shape[1] for B, _ in pairs)
    padded = [pad_rank(B, A, rank) for B, A in pairs]
    B, A = np.stack([B for B, _ in padded])[:, None], np.stack([A for _, A in padded])[:, None]
    batched = parts(function(B, A))
    on_torch = parts(function(torch.as_tensor(B), torch.as_tensor(A)))
    for index, (pair, alone) in enumerate(zip(pairs, one_by_one, strict=True)):
        magnitude, sensitivity = allowed_for(name, *pair)
        atol = tolerance(*pair) * magnitude * sensitivity
        for reference, *others in zip(alone, batched, on_torch, strict=True):
            for found in others:
                np.testing.assert_allclose(found[index, 0], reference, rtol=0, atol=atol)


def parts(value):
    return [np.asarray(part) for part in (value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_loses_no_more_than_rounding(name):
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((OUT, 3)), rng.standard_normal((3, IN))
    magnitude, sensitivity = allowed_for(name, B, A)
    narrow = B.astype(np.float32), A.astype(np.float32)
    for found, wide in zip(parts(FUNCTIONS[name](*narrow)), parts(FUNCTIONS[name](B, A)), strict=True):
        atol = tolerance(*narrow) * magnitude * sensitivity
        np.testing.assert_allclose(found, wide, rtol=0, atol=atol)
