"""The laws of invariant features, over the family: invariance, what each sees and is blind to, the slow reference."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorascope.adapter import Adapter, LowRank
from lorascope.features import FEATURES, featurise, filtered_projector, projections
from lorascope.features.side import filter_values
from lorascope.symmetry import SiteStack, thin_svd
from lorascope.testing import adapters, assert_invariant, factor_pairs

NAMES = FEATURES.names()


def on_factors(feature):
    """The feature as a function of (B, A) of one site."""
    return lambda B, A: feature(SiteStack(("site",), B[None, None], A[None, None]))[0, 0]


def random_update(rng, out=9, in_=7, rank=3):
    return rng.standard_normal((out, rank)), rng.standard_normal((rank, in_))


def rotation(n, rng):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


CHANGES = {
    "scale": lambda B, A, rng: (2 * B, A),
    "sign": lambda B, A, rng: (-B, A),
    "rotate out": lambda B, A, rng: (rotation(len(B), rng) @ B, A),
    "rotate in": lambda B, A, rng: (B, A @ rotation(A.shape[1], rng)),
}


@pytest.mark.parametrize("name", NAMES)
@given(pair=factor_pairs(kinds=("plain", "zero B", "zero A", "deficient", "repeated", "nearly repeated")))
def test_no_gauge_padding_or_permutation_changes_a_feature(name, pair):
    # the filter f and the logarithms have slopes up to 1/δ relative to the norm: δ is at least .02
    assert_invariant(on_factors(FEATURES[name]()), pair, sensitivity=100.0, magnitude=1.0)


@pytest.mark.parametrize("name", NAMES)
def test_every_change_is_declared_seen_or_not(name):
    feature = FEATURES[name]
    assert feature.sees | feature.blind_to == set(CHANGES)
    assert not feature.sees & feature.blind_to
    assert feature.sees and feature.blind_to


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("name", NAMES)
def test_a_feature_sees_what_it_says_and_nothing_else(name, change):
    rng = np.random.default_rng(3)
    feature = on_factors(FEATURES[name]())
    B, A = random_update(rng)
    before, after = feature(B, A), feature(*CHANGES[change](B, A, rng))
    moved = np.abs(after - before).max()
    if change in FEATURES[name].sees:
        assert moved > 1e-2
    else:
        assert moved < 1e-9


@pytest.mark.parametrize("name", NAMES)
@given(pair=factor_pairs())
def test_same_values_on_numpy_and_on_pytorch(name, pair):
    B, A = pair
    feature = on_factors(FEATURES[name]())
    tensors = feature(torch.from_numpy(B), torch.from_numpy(A))
    # two LAPACKs round differently, by as much as a gauge of condition 1 does
    condition = max(1.0, np.linalg.norm(B) * np.linalg.norm(A) / max(np.linalg.norm(B @ A), 1e-300))
    condition = condition if np.linalg.norm(B @ A) > 0 else 1.0
    assert np.allclose(feature(B, A), tensors.numpy(), rtol=0, atol=1e-12 * condition * 100)


@pytest.mark.parametrize("name", NAMES)
def test_one_by_one_and_batched_agree(name):
    rng = np.random.default_rng(0)
    feature = FEATURES[name]()
    B, A = rng.standard_normal((4, 3, 9, 2)), rng.standard_normal((4, 3, 2, 7))
    sites = ("a", "b", "c")
    batched = feature(SiteStack(sites, B, A))
    alone = np.stack([feature(SiteStack(sites, B[i : i + 1], A[i : i + 1]))[0] for i in range(4)])
    assert np.allclose(batched, alone, rtol=0, atol=1e-12)


@given(pair=factor_pairs(kinds=("plain",), max_condition=100.0), delta=st.sampled_from([0.02, 0.3]))
def test_the_solve_and_the_svd_give_the_same_filtered_projector(pair, delta):
    B, A = pair
    U, S, _ = thin_svd(B, A)
    by_svd = (U * filter_values(S, delta)) @ U.T
    dense = B @ A
    W = dense @ dense.T
    slow = W @ np.linalg.inv(W + delta**2 * np.linalg.norm(dense) ** 2 * np.eye(len(W)))
    # the Gram matrices of the solve square the condition of the factors (up to 1e4 each side)
    assert np.allclose(by_svd, slow, atol=1e-9)
    assert np.allclose(filtered_projector(B, A, delta), by_svd, atol=1e-4)


@pytest.mark.parametrize("case", ["plain", "zero B", "zero A", "both zero", "deficient"])
def test_the_filtered_projector_has_gradients_everywhere(case):
    rng = np.random.default_rng(1)
    B, A = (torch.from_numpy(x) for x in random_update(rng, 5, 4, 2))
    if case in ("zero B", "both zero"):
        B = B * 0
    if case in ("zero A", "both zero"):
        A = A * 0
    if case == "deficient":
        B = B[:, :1].expand(-1, 2).clone()
    B.requires_grad_(True)
    A.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda b, a: filtered_projector(b, a, 0.3), (B, A), atol=1e-5)


def test_projections_are_isometries_on_average_and_differ_between_sites():
    P = projections(["a", "b"], "out", 64, 512)
    assert P.shape == (2, 64, 512)
    assert np.allclose(np.sort(np.unique(np.abs(P))), 1 / 8)
    assert np.abs(P[0] - P[1]).max() > 0
    x = np.random.default_rng(0).standard_normal((200, 512))
    ratio = np.linalg.norm(x @ P[0].T, axis=1) ** 2 / np.linalg.norm(x, axis=1) ** 2
    assert abs(ratio.mean() - 1) < 5 / np.sqrt(64 * 200)


def test_projections_are_fixed_for_all_time():
    # saved predictors depend on these bits
    signs = projections(["layers.0.q"], "in", 4, 16, seed=7)[0] * 2
    assert ["".join("+" if x > 0 else "-" for x in row) for row in signs] == EXPECTED_SIGNS


EXPECTED_SIGNS = ["+++-+-+--++++-+-", "++++++-++-+++-++", "--+++++++--+-++-", "+-----++--++++-+"]


@given(adapter=adapters(shapes=((6, 5), (4, 5), (6, 5)), ranks=(1, 4)))
def test_featurise_matches_site_by_site(adapter):
    members = [FEATURES[name]() for name in NAMES]
    sites = list(adapter)
    table = featurise([adapter, adapter], members, sites=sites)
    order = [sites[0], sites[2], sites[1]]  # by shape in order of first occurrence
    for member in members:
        alone = []
        for site in order:
            B, A, scale = adapter[site].factors(np.float64)
            alone.append(np.ravel(member(SiteStack((site,), scale * B[None, None], A[None, None]))))
        assert table[member.name].shape[0] == 2
        assert np.allclose(table[member.name][1], np.concatenate(alone), atol=1e-6)


def test_featurise_streams(tmp_path):
    alive, most = [], 0

    def stream():
        nonlocal most
        for _ in range(300):
            adapter = Adapter({"q": LowRank(np.ones((4, 1)), np.ones((1, 4)))})
            alive.append(1)
            most = max(most, len(alive))
            yield adapter

    counted = []
    featurise(stream(), [FEATURES["log-norm"]()], sites=["q"], advance=lambda n: (counted.append(n), alive.clear()))
    assert sum(counted) == 300
    assert most <= 64


def test_spectral_statistics_of_a_known_spectrum():
    # three equal directions of four: every effective rank is 3, every share a third
    B = np.zeros((1, 1, 6, 4))
    B[0, 0, :4] = np.diag([2.0, 2.0, 2.0, 0.0])
    values = FEATURES["spectral-statistics"]()(SiteStack(("q",), B, np.eye(4, 5)[None, None]))[0, 0]
    sizes, relative, shares, ranks = values[:4], values[4:10], values[10:16], values[16:]
    assert np.allclose(sizes, np.log([12**0.5, 6, 2, 48**0.25]))
    assert np.allclose(relative, 0.5 * np.log(np.array([1 / 3] * 3 + [0] * 3) + 0.02**2))
    assert np.allclose(shares, [1 / 3, 2 / 3, 1, 1, 1, 1])
    assert np.allclose(ranks[:5], [3, 3, 3, np.log(3), 3])
    assert np.allclose(ranks[5:], [4 / (4 + t * t * 12) * 3 for t in (0.03, 0.1, 0.3)])
