"""The models of Learning on LoRAs that need more than the laws: O-Align, Dense, and the MLP with augmentation."""

import dataclasses

import numpy as np
import pytest
import torch

from lorascope.errors import PredictorError
from lorascope.predict import MODELS, fit_predictor
from lorascope.predict.models import dense as dense_module
from lorascope.predict.models._augmented_network import Augmented
from lorascope.predict.models._dense_network import OnProducts
from lorascope.predict.models.o_align import aligned, mean_templates
from lorascope.predict.neural import Standardised
from lorascope.symmetry import align, balance
from planted import planted_dataset

EPS = np.finfo(float).eps


@pytest.fixture(scope="module")
def dataset():
    return planted_dataset(60)


def random_factors(rng, *batch, out=9, in_=7, rank=3):
    """Balanced factors of random updates."""
    return balance(rng.standard_normal((*batch, out, rank)), rng.standard_normal((*batch, rank, in_)))


def stacked(B, A):
    """X = [U √S; V √S]."""
    return np.concatenate([B, A.mT], axis=-2)


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_alignment_is_that_of_the_core_where_the_template_has_room(rank):
    rng = np.random.default_rng(0)
    factors = random_factors(rng, 5, 2, rank=rank)
    template = random_factors(rng, 2, rank=4)
    B, A = aligned(factors, template)
    core = align(*factors, *template)
    bound = 1e3 * EPS / core.smallest.min()
    assert B.shape == (5, 2, 9, 4)
    assert np.abs(B - core.B).max() < bound
    assert np.abs(A - core.A).max() < bound
    assert np.abs(B @ A - factors[0] @ factors[1]).max() < 1e3 * EPS


def test_no_other_turn_is_closer_to_the_template():
    rng = np.random.default_rng(1)
    for rank in (2, 3, 6):
        factors, template = random_factors(rng, rank=rank), random_factors(rng, rank=3)
        X, T = stacked(*factors), stacked(*template)
        best = (stacked(*aligned(factors, template)) * T).sum()
        for _ in range(50):
            Q = np.linalg.qr(rng.standard_normal((max(rank, 3), max(rank, 3))))[0][:rank, :3]
            assert (X @ Q * T).sum() < best


def test_of_more_directions_than_the_template_has_the_closest_are_kept():
    factors = random_factors(np.random.default_rng(2), 4, 1, rank=5)
    leading = factors[0][0, :, :, :2], factors[1][0, :, :2]
    B, A = aligned(factors, leading)
    assert B.shape[-1] == 2
    # the first adapter's own two leading directions are the template: they are what is kept of it
    assert np.abs(B[0] @ A[0] - leading[0] @ leading[1]).max() < 1e3 * EPS
    X, kept = stacked(*factors), stacked(B, A)
    assert (np.linalg.norm(kept, axis=(-2, -1)) < np.linalg.norm(X, axis=(-2, -1))).all()


def test_repeated_singular_values_are_no_obstacle():
    rng = np.random.default_rng(3)
    U, V = (np.linalg.qr(rng.standard_normal((n, 3)))[0] for n in (9, 7))
    template = random_factors(rng, 1)
    Q = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    one, other = ((U[None], V.T[None]), ((U @ Q)[None], (U @ Q).T[None] @ U[None] @ V.T[None]))
    for x, y in zip(aligned(one, template), aligned(other, template), strict=True):
        assert np.abs(x - y).max() < 1e-12


def test_the_form_jumps_where_the_template_does_not_see_an_update():
    template = np.array([[[1.0], [0.0]]]), np.array([[[1.0, 0.0]]])
    forms = []
    for tilt in (1e-9, -1e-9):
        direction = np.array([[tilt, 1.0]])
        B, A = aligned((direction.T[None], direction[None]), template)
        assert np.abs(B @ A - direction.T @ direction).max() < 1e-15
        forms.append(B)
    assert np.abs(forms[0] - forms[1]).max() == pytest.approx(2.0)


def test_templates_are_means_of_what_is_aligned_with_them():
    rng = np.random.default_rng(4)
    factors = random_factors(rng, 1, 2)
    noisy = tuple(np.repeat(X, 30, axis=0) + 0.05 * rng.standard_normal((30, *X.shape[1:])) for X in factors)
    scale = np.exp(rng.normal(size=(30, 1, 1, 1)))
    Q = np.linalg.qr(rng.standard_normal((30, 2, 3, 3)))[0]
    [template] = mean_templates([(scale * noisy[0] @ Q, scale * Q.mT @ noisy[1])], 3)
    T, X = stacked(*template), stacked(*factors)[0]
    # the mean of 30 noisy copies, found although each was turned and scaled; templates are known up to a turn
    T, X = (Z @ Z.mT / np.linalg.norm(Z @ Z.mT, axis=(-2, -1), keepdims=True) for Z in (T, X))
    assert np.abs(T - X).max() < 0.02


def test_templates_have_the_most_directions_of_the_training_adapters():
    rng = np.random.default_rng(5)
    wide, narrow = random_factors(rng, 2, 1, rank=4), random_factors(rng, 8, 1, rank=2)
    padded = (
        np.concatenate([narrow[0], np.zeros((8, 1, 9, 2))], -1),
        np.concatenate([narrow[1], np.zeros((8, 1, 2, 7))], -2),
    )
    [(B, A)] = mean_templates([tuple(np.concatenate(pair) for pair in zip(padded, wide, strict=True))], 4)
    assert (np.linalg.matrix_rank(B) == 4).all() and (np.linalg.matrix_rank(A) == 4).all()
    zero = np.zeros((3, 1, 9, 4)), np.zeros((3, 1, 4, 7))
    assert not any(X.any() for X in mean_templates([zero], 4)[0])


def test_the_template_is_of_the_training_adapters_alone(dataset):
    other = planted_dataset(60, seed=9)
    test = set(dataset.where("test"))
    mixed = tuple(other.samples[i] if i in test else sample for i, sample in enumerate(dataset.samples))
    model = MODELS["o-align"](epochs=1)
    one, two = (
        fit_predictor(d, "size", model) for d in (dataset, dataclasses.replace(dataset, samples=mixed, _inputs={}))
    )
    for (B1, A1), (B2, A2) in zip(one.members[0].fitted.templates, two.members[0].fitted.templates, strict=True):
        assert np.array_equal(B1, B2) and np.array_equal(A1, A2)


def test_products_block_by_block_are_the_dense_network():
    rng = np.random.default_rng(6)
    stacks = [random_factors(rng, 40, 2), random_factors(rng, 40, 1, out=4, in_=5)]
    batch = {f"{k}{i}": torch.from_numpy(X) for i, stack in enumerate(stacks) for k, X in zip("BA", stack, strict=True)}
    flat = torch.from_numpy(np.concatenate([(B @ A).reshape(40, -1) for B, A in stacks], axis=1))
    assert OnProducts.columns(batch) == flat.shape[1] == 2 * 63 + 20
    one = OnProducts(flat.shape[1], 4, 3, dropout=0.0, generator=torch.Generator().manual_seed(0)).double()
    two = Standardised(flat.shape[1], 4, 3, dropout=0.0, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(one.calibrate(batch)(batch), two.calibrate({"x": flat})({"x": flat}))


def test_dense_sees_the_magnitude_and_the_direction(dataset):
    predictor = fit_predictor(dataset, "size", MODELS["dense"](epochs=2))
    adapter = dataset.samples[0].read()

    def score(factor):
        sites = {name: dataclasses.replace(update, scale=factor * update.scale) for name, update in adapter.items()}
        return predictor.predict([adapter.with_sites(sites)])[0].value

    assert len({round(score(factor), 6) for factor in (1.0, 2.0, -1.0)}) == 3


def test_dense_beyond_its_budget_is_sketched_or_refused(dataset, monkeypatch):
    structure = dataset.structure(range(3))
    whole = MODELS["dense"]()
    assert not whole.is_sketched(structure)
    monkeypatch.setattr(dense_module, "BUDGET", 2 * 140 + 107)  # one entry less than the three sites have
    assert whole.is_sketched(structure)
    sketched = MODELS["dense"](size=3, seed=7).inputs(dataset.samples[:5], structure)
    assert sketched["B0"].shape[2] == sketched["A0"].shape[3] == 3
    from lorascope.features import projections

    P, Q = (projections(["layers.0.v"], side, 3, n, seed=7)[0] for side, n in (("out", 14), ("in", 10)))
    dense = dataset.samples[4].read()["layers.0.v"].delta_weight(np.float64)
    found = sketched["B0"][4, 1] @ sketched["A0"][4, 1]
    assert np.abs(found - P @ dense @ Q.T).max() < 1e3 * EPS * np.linalg.norm(dense)
    with pytest.raises(PredictorError, match=r"too many entries.*expected 387 or fewer, found 388 in 3 sites"):
        fit_predictor(dataset, "size", MODELS["dense"](sketch=False))


def test_augmentation_is_another_gauge_of_bounded_condition():
    rng = np.random.default_rng(8)
    shapes, rank = [(2, 6, 5), (1, 4, 7)], 3
    factors = [
        (rng.standard_normal((20, s, out, rank)), rng.standard_normal((20, s, rank, in_))) for s, out, in_ in shapes
    ]
    x = torch.from_numpy(np.concatenate([X.reshape(20, -1) for pair in factors for X in pair], axis=1))
    net = Augmented(
        shapes, rank, 8, 2, condition=10.0, dropout=0.0, generator=torch.Generator().manual_seed(0)
    ).double()
    first, second = net.turned(x).numpy(), net.turned(x).numpy()
    assert np.abs(first - second).max() > 0.1
    start, conditions = 0, []
    for (sites, out, in_), (B, A) in zip(shapes, factors, strict=True):
        middle, end = start + sites * out * rank, start + sites * (out + in_) * rank
        new_B, new_A = first[:, start:middle].reshape(B.shape), first[:, middle:end].reshape(A.shape)
        # the orthogonal factors are drawn in float32
        assert np.abs(new_B @ new_A - B @ A).max() < 1e-4
        conditions += np.linalg.cond(new_A @ np.linalg.pinv(A)).ravel().tolist()
        start = end
    assert 1.5 < np.median(conditions) and max(conditions) < 10.0 * 1.01
    net.eval()
    assert torch.equal(net({"x": x}), net({"x": x}))
    net.train()
    assert not torch.equal(net({"x": x}), net({"x": x}))


def test_augmentation_of_rank_1_knows_both_signs():
    net = Augmented([(1, 1, 1)], 1, 2, 1, condition=4.0, dropout=0.0, generator=torch.Generator().manual_seed(0))
    turned = net.turned(torch.ones(200, 2))
    assert 60 < (turned[:, 0] > 0).sum() < 140
    assert 0.5 * 0.999 < turned.abs().min() < 0.6 and 1.7 < turned.abs().max() < 2.0 * 1.001


def test_a_condition_below_one_is_refused():
    with pytest.raises(PredictorError, match="condition: the option has an impossible value"):
        MODELS["augmented-mlp"](condition=0.5)
