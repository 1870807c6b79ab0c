"""The laws of attacks, over the family: each does what it says, and nothing else."""

import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import PredictorError
from lorascope.predict.attack import ATTACKS, attacked, attacked_samples, relative_change
from lorascope.predict.attacks.gauge import CONDITION
from lorascope.predict.attacks.int8 import LEVELS
from lorascope.testing import product_condition
from planted import planted_dataset

CHANGES = [(name, column) for name in ATTACKS.names() for column in ATTACKS[name].changes]
EPS32 = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def dataset():
    return planted_dataset(12)


def pairs(dataset, name, column):
    """Each adapter before and after."""
    for sample, one in zip(dataset.samples, dataset.ids, strict=True):
        before = sample.read()
        yield before, attacked(before, ATTACKS[name].changes[column], name=one)


def factors(adapter):
    """All B and A in float64."""
    return [X for update in adapter.values() for X in update.factors(np.float64)[:2]]


@pytest.mark.parametrize(("name", "column"), CHANGES)
def test_an_attack_that_keeps_the_update_does_and_no_other(dataset, name, column):
    for before, after in pairs(dataset, name, column):
        condition = max(product_condition(*update.factors(np.float64)[:2]) for update in before.values())
        change = relative_change(before, after)
        if ATTACKS[name].keeps_update:
            assert change < 10 * EPS32 * condition * CONDITION
        else:
            assert change > 10 * EPS32
        assert any(one.shape != two.shape or not np.array_equal(one, two) for one, two in _both(before, after))


def _both(before, after):
    return zip(factors(before), factors(after), strict=True)


@pytest.mark.parametrize(("name", "column"), CHANGES)
def test_what_is_drawn_depends_on_the_adapter_and_the_seed_alone(dataset, name, column):
    change = ATTACKS[name].changes[column]
    all_of_them = attacked_samples(dataset.samples, dataset.ids, change)
    [alone] = attacked_samples(dataset.samples[3:4], dataset.ids[3:4], change)
    for one, two in zip(factors(all_of_them[3].read()), factors(alone.read()), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize("name", ["gauge", "noise", "padding"])
def test_another_seed_draws_otherwise(dataset, name):
    adapter, change = dataset.samples[0].read(), next(iter(ATTACKS[name].changes.values()))
    one, two = (factors(attacked(adapter, change, name="a", seed=seed)) for seed in (0, 1))
    assert any(not np.array_equal(x, y) for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize(("name", "column"), CHANGES)
def test_an_untrained_site_stays_untrained(name, column):
    zero = Adapter({"q": LowRank(np.zeros((5, 2)), np.ones((2, 4))), "v": LowRank(np.zeros((3, 1)), np.zeros((1, 3)))})
    after = attacked(zero, ATTACKS[name].changes[column], name="zero")
    assert after.norm() == 0.0
    assert all(np.isfinite(X).all() for X in factors(after))


@pytest.mark.parametrize(("name", "column"), CHANGES)
def test_scale_and_sites_stay(dataset, name, column):
    for before, after in pairs(dataset, name, column):
        assert list(before) == list(after)
        assert [update.scale for update in before.values()] == [update.scale for update in after.values()]


def test_padding_doubles_the_rank_and_adds_nothing_but_zeros(dataset):
    for before, after in pairs(dataset, "padding", "padding"):
        for site, update in before.items():
            assert after[site].rank == 2 * update.rank
            B, A, _ = after[site].factors(np.float64)
            assert np.sort(np.abs(B).max(axis=0) == 0).tolist() == [False] * update.rank + [True] * update.rank
            own = update.factors(np.float64)
            assert sorted(map(tuple, A)) == sorted([*map(tuple, own.A), *[(0.0,) * A.shape[1]] * update.rank])


@pytest.mark.parametrize(("column", "size"), [("noise 1 %", 0.01), ("noise 10 %", 0.1)])
def test_noise_has_the_stated_size(column, size):
    rng = np.random.default_rng(0)
    B, A = 3.0 * rng.standard_normal((300, 8)), 0.01 * rng.standard_normal((8, 400))
    adapter = Adapter({"q": LowRank(B, A)})
    after = factors(attacked(adapter, ATTACKS["noise"].changes[column], name="a"))
    for X, noisy in zip((B, A), after, strict=True):
        added = np.sqrt(np.mean((noisy - X) ** 2)) / np.sqrt(np.mean(X**2))
        # the mean square of n normal numbers has a relative sd of √(2/n), its root half of that
        assert added == pytest.approx(size, rel=4 * np.sqrt(0.5 / X.size))
    # both factors' parts in quadrature, to first order, where columns are near orthogonal
    moved = relative_change(adapter, attacked(adapter, ATTACKS["noise"].changes[column], name="a"))
    assert moved == pytest.approx(np.sqrt(2) * size, rel=0.1)


def test_eight_bits_err_by_half_a_step_at_most(dataset):
    for before, after in pairs(dataset, "int8", "int8"):
        for X, rounded in _both(before, after):
            step = np.abs(X).max() / LEVELS
            assert np.abs(rounded - X).max() <= 0.5 * step * (1 + LEVELS * EPS32)
            assert len(np.unique(np.round(rounded / step))) <= 2 * LEVELS + 1
            assert np.abs(rounded / step - np.round(rounded / step)).max() < LEVELS * 2 * EPS32


def test_half_precision_errs_by_half_a_unit_in_the_last_place(dataset):
    smallest = float(np.finfo(np.float16).smallest_subnormal)
    for before, after in pairs(dataset, "fp16", "fp16"):
        assert {update.dtype for update in after.values()} == {"float16"}
        for X, rounded in _both(before, after):
            assert (np.abs(rounded - X) <= np.maximum(2.0**-11 * np.abs(X), 0.5 * smallest)).all()


def test_what_half_precision_cannot_hold_is_refused():
    adapter = Adapter({"q": LowRank(np.full((2, 1), 1e5), np.ones((1, 2)))})
    with pytest.raises(PredictorError, match="float16"):
        attacked(adapter, ATTACKS["fp16"].changes["fp16"], name="a")
