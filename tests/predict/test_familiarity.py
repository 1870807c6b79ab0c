"""Adapters unlike those of training are told from those that are like them, by what no gauge can move."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import PredictorError
from lorascope.forge import forge
from lorascope.predict import MODELS, Dataset, Predictor, Sample, fit_predictor
from lorascope.predict.familiarity import ABSTAIN_BELOW, Familiarity
from lorascope.predict.site_statistics import SIZE, Reduced, SiteStatistics
from lorascope.symmetry import gauged, pad_rank, random_gauge, stack_adapters
from lorascope.testing import product_condition
from planted import SITES, planted_adapter, planted_dataset

SETTINGS = {"base_steps": 60, "steps": 20}


def sample_of(adapter):
    return Sample(lambda: adapter, {})


def in_memory(path):
    """A forged zoo without its files, all of it."""
    dataset = Dataset.of(path)
    return replace(dataset, samples=tuple(sample_of(sample.read()) for sample in dataset.samples))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("familiar") / "zoo"
    forge("digits-vit", 64, path, seed=1, settings=SETTINGS)
    return in_memory(path)


@pytest.fixture(scope="module")
def familiarity(zoo):
    train = zoo.where("train", "validation")
    structure = zoo.structure(train)
    return Familiarity.fit([zoo.samples[i] for i in train], [zoo.groups[i] for i in train], structure)


@pytest.fixture(scope="module")
def held_out(zoo):
    return [zoo.samples[i].read() for i in zoo.where("test")]


def scores(familiarity, adapters):
    return np.asarray([one.unfamiliarity for one in familiarity.judge([sample_of(a) for a in adapters])])


def times(adapter, factor):
    sites = {}
    for site, update in adapter.items():
        B, A, scale = update.factors(np.float64)
        sites[site] = LowRank(B, A, scale * factor)
    return Adapter(sites)


def random_with_spectra_of(adapter, rng):
    """Random column and row spaces, every σ kept."""
    sites = {}
    for site, update in adapter.items():
        [stack] = stack_adapters([Adapter({site: update})])
        S = stack.svd.S[0, 0]
        U, V = (np.linalg.qr(rng.standard_normal((n, len(S))))[0] for n in update.shape)
        sites[site] = LowRank(U * S, V.T)
    return Adapter(sites)


def shuffled(adapter, rng):
    """Updates of equal shape moved to each other's sites, none left where it was."""
    by_shape = {}
    for site, update in adapter.items():
        by_shape.setdefault(update.shape, []).append(site)
    sites = {}
    for names in by_shape.values():
        order = rng.permutation(len(names))
        for place in range(len(names)):
            sites[names[order[place]]] = adapter[names[order[place - 1]]]
    return Adapter({site: sites[site] for site in adapter})


# the change, the reason given, and for how many at least; norms in this zoo span a factor of 30 themselves
STRANGE = {
    "100 times the norm": (lambda adapter, rng: times(adapter, 100.0), "times the largest in training", 0.7),
    "a 100th of the norm": (lambda adapter, rng: times(adapter, 0.01), "times the smallest in training", 0.7),
    "random spaces": (random_with_spectra_of, "column spaces unlike", 0.9),
    "shuffled sites": (shuffled, "column spaces unlike", 0.9),
}


@pytest.mark.parametrize("name", list(STRANGE))
def test_what_is_made_up_is_told_from_what_was_trained(familiarity, held_out, name):
    change, reason, share = STRANGE[name]
    rng = np.random.default_rng(0)
    strange = [change(adapter, rng) for adapter in held_out]
    usual, unusual = scores(familiarity, held_out), scores(familiarity, strange)
    truth = np.repeat([0, 1], [len(usual), len(unusual)])
    assert roc_auc_score(truth, np.append(usual, unusual)) >= 0.95
    judged = familiarity.judge([sample_of(adapter) for adapter in strange])
    assert sum(reason in one.reason for one in judged if one.is_strange) >= share * len(strange)


def test_another_base_is_another_world(familiarity, held_out, tmp_path):
    forge("digits-vit", 8, tmp_path / "other", seed=2, settings={**SETTINGS, "base_seed": 1})
    others = in_memory(tmp_path / "other")
    assert scores(familiarity, [sample.read() for sample in others.samples]).min() > scores(familiarity, held_out).max()
    assert all("another base" in one.reason for one in familiarity.judge(others.samples))


def test_a_reader_goes_on_at_another_rank(familiarity, tmp_path):
    forge("digits-vit", 8, tmp_path / "wide", seed=8, settings={**SETTINGS, "rank": 8})
    judged = familiarity.judge(in_memory(tmp_path / "wide").samples)
    assert sum(one.is_strange for one in judged) <= 2


def test_false_alarms_are_as_rare_as_stated():
    # 8 zoos of 60, 60 new adapters each: the share of alarms, with groups as units
    shares = []
    for seed in range(8):
        dataset = planted_dataset(120, seed=seed)
        familiarity = Familiarity.fit(dataset.samples[:60], dataset.groups[:60], dataset.structure(range(60)))
        shares.append(np.mean([one.is_strange for one in familiarity.judge(dataset.samples[60:])]))
    error = np.std(shares) / np.sqrt(len(shares))
    # beyond 1/61 the p-value is extrapolated: between nothing and the conformal bound
    assert np.mean(shares) <= 1 / 61 + ABSTAIN_BELOW + 3 * error


@pytest.fixture(scope="module")
def planted():
    dataset = planted_dataset(60)
    return dataset, Familiarity.fit(dataset.samples, dataset.groups, dataset.structure(range(60)))


def test_no_gauge_moves_it(planted):
    dataset, familiarity = planted
    rng = np.random.default_rng(3)
    for sample in dataset.samples[:10]:
        adapter = sample.read()
        turned = gauged(adapter, lambda rank: random_gauge(rank, condition=100.0, rng=rng), dtype=np.float64)
        worst = max(product_condition(*update.factors(np.float64)[:2]) for update in adapter.values())
        before, after = scores(familiarity, [adapter, turned])
        # logarithms divided by LEAST_SPREAD and LEAST_EXCESS: up to 200 times the relative error of a statistic
        assert abs(before - after) < 200 * 10 * np.finfo(float).eps * worst * 100.0


def test_no_padding_moves_it(planted):
    dataset, familiarity = planted
    adapter = dataset.samples[0].read()
    sites = {}
    for site, update in adapter.items():
        B, A = pad_rank(*update.factors(np.float64)[:2], 9)
        sites[site] = LowRank(B, A, update.scale)
    before, after = scores(familiarity, [adapter, Adapter(sites)])
    assert after == pytest.approx(before, abs=1e-9)


def test_adapters_are_judged_alike_alone_and_together(planted):
    dataset, familiarity = planted
    together = scores(familiarity, [sample.read() for sample in dataset.samples[:8]])
    alone = [scores(familiarity, [sample.read()])[0] for sample in dataset.samples[:8]]
    assert together == pytest.approx(alone, abs=1e-9)


def test_missing_sites_and_untrained_adapters_are_named(planted):
    dataset, familiarity = planted
    whole = dataset.samples[0].read()
    lacking = Adapter({site: update for site, update in whole.items() if site != "layers.1.q"})
    zero = Adapter({site: LowRank(np.zeros((out, 2)), np.ones((2, in_))) for site, (out, in_) in SITES.items()})
    some, none = familiarity.judge([sample_of(lacking), sample_of(zero)])
    assert some.is_strange
    assert "1 of 3 sites without an update" in some.reason
    assert none.is_strange
    assert "3 of 3 sites without an update" in none.reason


def test_where_sites_were_missing_in_training_it_is_not_strange(planted):
    dataset, _ = planted

    def without(sample):
        adapter = sample.read()
        return sample_of(Adapter({site: update for site, update in adapter.items() if site != "layers.1.q"}))

    some = [without(s) if i % 3 == 0 else s for i, s in enumerate(dataset.samples)]
    familiarity = Familiarity.fit(some[:50], dataset.groups[:50], dataset.structure(range(60)))
    assert not any("without" in one.reason for one in familiarity.judge(some[50:]) if one.is_strange)


def test_extremes_give_numbers(planted):
    dataset, familiarity = planted
    adapter = dataset.samples[0].read()
    judged = familiarity.judge([sample_of(times(adapter, factor)) for factor in (1e150, 1e-150, 1e30)])
    assert all(np.isfinite(one.unfamiliarity) and one.is_strange for one in judged)


def test_reading_again_gives_the_same_as_keeping(planted, monkeypatch):
    dataset, kept = planted
    monkeypatch.setattr("lorascope.predict.familiarity.KEPT_NUMBERS", 0)
    again = Familiarity.fit(dataset.samples, dataset.groups, dataset.structure(range(60)))
    assert all(np.array_equal(array, again.state()[name]) for name, array in kept.state().items())


def test_the_energies_are_means_of_squares(planted):
    # the slow reference: dense, one adapter and one site at a time
    dataset, familiarity = planted
    dense = [sample.read()["layers.0.q"].delta_weight(np.float64) for sample in dataset.samples]
    units = [W / np.linalg.norm(W) for W in dense]
    M, N = np.mean([W @ W.T for W in units], axis=0), np.mean([W.T @ W for W in units], axis=0)
    assert np.allclose(familiarity.statistics.left["layers.0.q"], M, rtol=0, atol=1e-6)
    assert np.allclose(familiarity.statistics.right["layers.0.q"], N, rtol=0, atol=1e-6)
    [stack] = stack_adapters([dataset.samples[0].read()], sites=["layers.0.q"])
    S = np.linalg.svd(dense[0], compute_uv=False)
    expected = [
        np.log(np.linalg.norm(S)),
        2 * np.log((S**2).sum()) - np.log((S**4).sum()),
        np.log(np.trace(M @ units[0] @ units[0].T)),
        np.log(np.trace(N @ units[0].T @ units[0])),
    ]
    assert np.allclose(familiarity.statistics.of(Reduced.of(stack))[0, 0], expected, rtol=0, atol=1e-5)


def test_large_sides_are_sketched():
    rng = np.random.default_rng(0)
    adapters = [Adapter({"up": LowRank(rng.standard_normal((200, 2)), rng.standard_normal((2, 70)))}) for _ in "ab"]
    [stack] = stack_adapters(adapters)
    energies = Reduced.of(stack).energies()["up"]
    assert energies[0].shape == energies[1].shape == (SIZE, SIZE)
    means = {"up": energies[0] / 2}, {"up": energies[1] / 2}
    assert np.isfinite(SiteStatistics(*means, 2)(stack)).all()


@pytest.fixture(scope="module")
def predictor(planted):
    return fit_predictor(planted[0], "size", MODELS["ridge"](size=4))


def test_a_predictor_abstains_and_says_why(predictor, planted):
    dataset = planted[0]
    usual, strange = predictor.predict([dataset.samples[0].read(), times(dataset.samples[0].read(), 1e4)])
    assert not usual.abstained
    assert usual.reason is None
    assert usual.p_value > ABSTAIN_BELOW
    assert usual.as_dict()["prediction"] == usual.value
    assert strange.abstained
    assert "times the largest" in strange.reason
    told, forced = strange.as_dict(), strange.as_dict(force=True)
    assert all(told[name] is None for name in ("prediction", "interval", "sd"))
    assert forced["prediction"] == strange.value
    assert told["abstained"]
    assert forced["abstained"]
    assert told["schema_version"] == 2


@pytest.mark.parametrize("name", ["ridge", "svd"])
def test_saved_and_loaded_it_judges_the_same(planted, name, tmp_path):
    dataset = planted[0]
    model = MODELS["ridge"](size=4) if name == "ridge" else MODELS["svd"](epochs=1)
    predictor = fit_predictor(dataset, "size", model)
    predictor.save(tmp_path / "p")
    rng = np.random.default_rng(9)
    adapters = [dataset.samples[0].read(), planted_adapter(rng, [7, 8], 40.0), planted_adapter(rng, [0], 1.0, rank=1)]
    before, after = predictor.predict(adapters), Predictor.load(tmp_path / "p").predict(adapters)
    assert before == after
    assert before[1].abstained


def test_only_training_adapters_count(planted):
    dataset = planted[0]
    test = set(dataset.where("test").tolist())
    spoiled = tuple(sample_of(times(s.read(), 1e3)) if i in test else s for i, s in enumerate(dataset.samples))
    moved = fit_predictor(replace(dataset, samples=spoiled, _inputs={}, _familiarities={}), "size", MODELS["ridge"]())
    state = fit_predictor(dataset, "size", MODELS["ridge"]()).familiarity.state()
    assert all(np.array_equal(array, state[name]) for name, array in moved.familiarity.state().items())


def test_foreign_sites_are_an_error_and_not_an_abstention(predictor, planted):
    whole = planted[0].samples[0].read()
    with pytest.raises(PredictorError, match="other layers"):
        predictor.predict([Adapter({**whole.sites, "head": whole["layers.0.q"]})])


def test_a_model_that_looks_at_no_weights_judges_none(planted):
    dataset = planted[0]
    predictor = fit_predictor(dataset, "size", MODELS["hyperparameters"]())
    assert predictor.familiarity is None
    [said] = predictor.predict(dataset.samples[:1])
    assert (said.unfamiliarity, said.p_value, said.abstained) == (None, None, False)
