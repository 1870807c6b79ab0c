"""Tokens in the principal directions of training adapters: what they keep and leave out, and that no gauge shows."""

from dataclasses import replace

import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank
from lorascope.predict import MODELS, Predictor, Sample, fit_predictor
from lorascope.predict.model import Structure
from lorascope.predict.principal import Principal
from lorascope.predict.site_statistics import SEED, SIZE
from lorascope.predict.tokens import sketched, tokens_of
from planted import planted_dataset

EPS = np.finfo(np.float64).eps


def tokens_in(subspace, n, rank, rng):
    """Orthonormal directions inside the span of ``subspace`` [h, d]."""
    inside = [np.linalg.qr(rng.standard_normal((subspace.shape[1], rank))).Q for _ in range(n)]
    return np.stack([subspace @ one for one in inside])[:, None]


def inputs_in(subspace, rng, n=20, rank=2):
    return {
        "left0": tokens_in(subspace, n, rank, rng),
        "S0": rng.uniform(0.5, 2.0, (n, 1, rank)),
        "right0": tokens_in(np.eye(6), n, rank, rng),
    }


def test_what_all_training_adapters_share_is_kept_whole():
    rng = np.random.default_rng(0)
    subspace = np.linalg.qr(rng.standard_normal((30, 5))).Q
    principal = Principal.of(inputs_in(subspace, rng), 5)
    new = inputs_in(subspace, rng)
    reduced = principal(new)
    assert reduced["left0"].shape == (20, 1, 5, 2)
    assert reduced["right0"].shape == (20, 1, 5, 2)  # 6 dimensions, of which 5 are kept
    gram = np.swapaxes(reduced["left0"], -1, -2) @ reduced["left0"]
    assert np.allclose(gram, np.eye(2), rtol=0, atol=1e3 * EPS)
    [basis] = principal.bases["left0"]
    assert np.allclose(basis @ basis.T, subspace @ subspace.T, rtol=0, atol=1e4 * EPS)


def test_the_directions_that_more_adapters_have_come_first():
    rng = np.random.default_rng(0)
    common, rare = np.eye(12)[:, :3], np.eye(12)[:, 3:]
    inputs = {
        "left0": np.concatenate([tokens_in(common, 30, 2, rng), tokens_in(rare, 5, 2, rng)]),
        "S0": np.ones((35, 1, 2)),
        "right0": np.ones((35, 1, 2, 2)),
    }
    [basis] = Principal.of(inputs, 3).bases["left0"]
    assert np.linalg.norm(common.T @ basis) ** 2 == pytest.approx(3, abs=0.2)


def test_small_sides_and_singular_values_are_left_as_they_were():
    rng = np.random.default_rng(0)
    inputs = inputs_in(np.eye(8), rng)
    principal = Principal.of(inputs, 8)
    assert not principal.bases
    assert all(principal(inputs)[name] is array for name, array in inputs.items())


def test_directions_that_nobody_has_are_seen_by_nobody():
    rng = np.random.default_rng(0)
    inputs = inputs_in(np.eye(20)[:, :4], rng, n=3)
    [basis] = Principal.of(inputs, 10).bases["left0"]
    assert int((np.abs(basis).max(axis=0) > 0).sum()) == 4
    assert np.abs(basis[4:]).max() < 1e3 * EPS


def tied_inputs(rng, h=14):
    """Each adapter in one direction of a random basis: of five directions three, of four two, of the others one."""
    counts = [3] * 5 + [2] * 4 + [1] * (h - 9)
    basis = np.linalg.qr(rng.standard_normal((h, h))).Q
    order = rng.permutation(np.repeat(np.arange(h), counts))  # the order of the sums, and so their rounding
    tokens = rng.choice([-1.0, 1.0], len(order))[:, None] * basis.T[order]
    return basis, {
        "left0": tokens[:, None, :, None],
        "S0": rng.uniform(0.5, 2.0, (len(order), 1, 1)),  # f(σ) is the same at rank 1
        "right0": np.ones((len(order), 1, 2, 1)),
    }


@pytest.mark.parametrize(
    ("size", "kept"), [(4, 0), (5, 5), (6, 5), (8, 5), (9, 9), (10, 9), (13, 9)], ids=lambda n: str(n)
)
@pytest.mark.parametrize("seed", range(3))
def test_directions_that_are_equal_at_the_cut_are_left_out_together(size, kept, seed):
    basis, inputs = tied_inputs(np.random.default_rng(seed))
    [found] = Principal.of(inputs, size).bases["left0"]
    assert found.shape == (14, size)
    shared = basis[:, :kept] @ basis[:, :kept].T
    # the gaps are a third of the largest eigenvalue
    assert np.allclose(found @ found.T, shared, rtol=0, atol=1e3 * EPS)


def test_a_cut_among_directions_that_nobody_has_takes_none_from_the_others():
    _, inputs = tied_inputs(np.random.default_rng(0))
    rare = {name: array[:3] for name, array in inputs.items()}
    [found] = Principal.of(rare, 8).bases["left0"]
    assert np.linalg.matrix_rank(found) == np.linalg.matrix_rank(rare["left0"][:, 0, :, 0])


def test_a_basis_of_another_shape_is_refused():
    rng = np.random.default_rng(0)
    state = Principal.of(inputs_in(np.eye(8), rng), 5).state()
    shapes = {"left0": (1, 8, 5), "right0": (1, 6, 5)}
    restored = Principal.restored(state, shapes)
    assert all(np.array_equal(restored.bases[name], state[f"principal.{name}"]) for name in shapes)
    for bad in ({}, {**state, "principal.left0": np.zeros((1, 8, 4))}):
        with pytest.raises(ValueError, match="principal directions of left0"):
            Principal.restored(bad, shapes)


def test_exact_sides_come_to_the_same_as_projected_ones_once_they_are_projected():
    rng = np.random.default_rng(0)
    structure = Structure({"q": (100, 20), "v": (90, 600)}, 2)
    adapters = [
        Adapter(
            {
                name: LowRank(rng.standard_normal((out, 2)), rng.standard_normal((2, in_)))
                for name, (out, in_) in structure.sites.items()
            }
        )
        for _ in range(3)
    ]
    samples = [Sample(lambda a=a: a, {}) for a in adapters]
    projected = tokens_of(samples, structure, size=SIZE, seed=SEED)
    exact = tokens_of(samples, structure, size=SIZE, seed=SEED, exact=512)
    assert [exact[f"left{i}"].shape[2] for i in (0, 1)] == [100, 90]
    assert [exact[f"right{i}"].shape[2] for i in (0, 1)] == [20, 64]  # beyond 512: projected all the same
    again = sketched(exact, structure, size=SIZE, seed=SEED)
    for name, array in projected.items():
        assert np.allclose(again[name], array, rtol=0, atol=1e2 * EPS * np.abs(array).max())


@pytest.mark.parametrize("target", ["size", "classes"])
def test_a_predictor_in_principal_directions_is_kept_and_knows_no_gauge(tmp_path, target):
    dataset = planted_dataset(60)
    predictor = fit_predictor(dataset, target, MODELS["kernels"](principal=6))
    fitted = predictor.members[0].fitted
    assert {name: basis.shape[1:] for name, basis in fitted.principal.bases.items()} == {
        "left0": (14, 6),
        "right0": (10, 6),
        "left1": (12, 6),
        "right1": (9, 6),
    }
    predictor.save(tmp_path / "p")
    inputs = predictor.model.inputs(dataset.samples[:10], predictor.structure)
    scores = fitted.scores(inputs)
    assert np.array_equal(Predictor.load(tmp_path / "p").members[0].fitted.scores(inputs), scores)
    gauged = replace(dataset.in_random_gauge(condition=30.0, dtype=np.float64), _inputs={})
    other = fitted.scores(predictor.model.inputs(gauged.samples[:10], predictor.structure))
    # condition 30 on factors of float32 numbers in float64 moves ΔW by 30² eps, and all is continuous in it
    assert np.allclose(other, scores, rtol=0, atol=1e6 * EPS * max(1.0, np.abs(scores).max()))
