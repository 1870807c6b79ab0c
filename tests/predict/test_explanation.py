"""What a value comes from: parts that sum to it, that no gauge changes, and that finite differences confirm."""

import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import PredictorError
from lorascope.features import FEATURES
from lorascope.predict import MODELS, Predictor, fit_predictor
from lorascope.symmetry import gauged, random_gauge, stack_adapters
from planted import SITES, planted_adapter, planted_dataset

EXPLAINED = ("ridge", "glnet", "svd")


@pytest.fixture(scope="module")
def dataset():
    return planted_dataset(40)


@pytest.fixture(scope="module")
def predictors(dataset):
    models = {
        "ridge": MODELS["ridge"](size=8),
        "glnet": MODELS["glnet"](epochs=4, layers=2, hidden=6, gate="smooth"),
        "svd": MODELS["svd"](epochs=4),
    }
    return {
        (name, target): fit_predictor(dataset, target, model, seeds=(0, 1))
        for name, model in models.items()
        for target in ("size", "classes")
    }


def grown(adapter, site, factor):
    """The adapter with ΔW of one site times a factor."""
    B, A, scale = adapter[site].factors(np.float64)
    return Adapter({**adapter.sites, site: LowRank(B * factor, A, scale)})


@pytest.mark.parametrize("target", ["size", "classes"])
def test_the_parts_of_a_ridge_sum_to_its_score(predictors, dataset, target):
    predictor = predictors["ridge", target]
    for sample in dataset.samples[:5]:
        [told], [said] = predictor.explain([sample]), predictor.predict([sample])
        assert told.how == "exact"
        assert told.score - told.baseline == pytest.approx(sum(told.sites.values()), abs=1e-10)
        assert told.score - told.baseline == pytest.approx(sum(told.features.values()), abs=1e-10)
        if target == "size":
            assert told.score == pytest.approx(said.value, abs=1e-12)
            assert told.unit == "target"
        else:
            assert str(told.label) == max(said.probabilities, key=said.probabilities.get)
            assert told.unit == "logit"


def test_the_baseline_is_the_mean_score_of_the_training_adapters(dataset):
    every = [i for i, split in enumerate(dataset.splits) if split != "test"]
    predictor = fit_predictor(dataset, "size", MODELS["ridge"](size=8))
    [member] = predictor.members
    inputs = predictor.model.inputs([dataset.samples[i] for i in every], predictor.structure)
    baseline = predictor.explain(dataset.samples[:1])[0].baseline
    # the member was fitted on some of these: the mean of kernel ridge over its own samples is that of their targets
    truth = member.fitted.calibration[1]
    assert baseline == pytest.approx(float(truth.mean()) * predictor.target.spread + predictor.target.mean, abs=1e-9)
    assert len(truth) < len(inputs["log-norm"])


@pytest.mark.parametrize("name", [name for name in FEATURES.names() if hasattr(FEATURES[name], "directions")])
def test_a_feature_is_the_sum_of_its_directions(name):
    rng = np.random.default_rng(0)
    feature = FEATURES[name](size=5)
    for stack in stack_adapters([planted_adapter(rng, [0, 1], 1.0, rank=4), planted_adapter(rng, [2], 0.0, rank=2)]):
        parts = np.asarray(feature.directions(stack))
        assert parts.shape[:3] == stack.svd.S.shape
        assert np.allclose(parts.sum(axis=2), feature(stack), rtol=0, atol=1e-14)


def test_directions_of_a_ridge_on_projectors_are_all_of_it(dataset):
    predictor = fit_predictor(dataset, "size", MODELS["ridge"](features=("column-space",), size=8))
    [told] = predictor.explain(dataset.samples[:1])
    zero = Adapter({site: LowRank(np.zeros((out, 1)), np.zeros((1, in_))) for site, (out, in_) in SITES.items()})
    [nothing] = predictor.explain([zero])  # what is left of a site's part is the training mean
    for site, parts in told.directions.items():
        assert sum(part for _, part in parts) == pytest.approx(told.sites[site] - nothing.sites[site], abs=1e-12)


@pytest.mark.parametrize("target", ["size", "classes"])
@pytest.mark.parametrize("name", ["glnet", "svd"])
def test_the_parts_of_a_network_are_its_changes(predictors, dataset, name, target):
    predictor, adapter = predictors[name, target], dataset.samples[3].read()
    label = None if target == "size" else 2
    [told] = predictor.explain([adapter], label=label)
    assert told.how == "gradient"
    assert told.baseline is None
    step = 1e-5
    for site in SITES:
        more, less = (predictor.explain([grown(adapter, site, 1 + h)], label=label)[0].score for h in (step, -step))
        # central differences: error O(step²) of the third derivative, and rounding eps / step
        assert told.sites[site] == pytest.approx((more - less) / (2 * step), abs=1e-6)
        assert sum(part for _, part in told.directions[site]) == pytest.approx(told.sites[site], abs=1e-9)


@pytest.mark.parametrize("name", EXPLAINED)
def test_no_gauge_changes_an_explanation(predictors, dataset, name):
    rng = np.random.default_rng(1)
    predictor, adapter = predictors[name, "size"], dataset.samples[4].read()
    turned = gauged(adapter, lambda rank: random_gauge(rank, condition=100.0, rng=rng), dtype=np.float64)
    [before], [after] = predictor.explain([adapter]), predictor.explain([turned])
    assert before.sites == pytest.approx(after.sites, abs=1e-8)
    for site, parts in before.directions.items():
        assert np.allclose(parts, after.directions[site], rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", EXPLAINED)
def test_a_saved_predictor_explains_the_same(predictors, dataset, name, tmp_path):
    predictors[name, "size"].save(tmp_path / "p")
    assert Predictor.load(tmp_path / "p").explain(dataset.samples[:2]) == predictors[name, "size"].explain(
        dataset.samples[:2]
    )


@pytest.mark.parametrize("name", EXPLAINED)
def test_a_site_without_an_update_has_no_directions(predictors, dataset, name):
    lacking = Adapter({site: update for site, update in dataset.samples[0].read().items() if site != "layers.1.q"})
    [told] = predictors[name, "size"].explain([lacking])
    assert set(told.sites) == set(SITES)
    assert told.directions["layers.1.q"] == []


@pytest.mark.parametrize(("name", "reason"), [("mlp", "gauge"), ("hyperparameters", "never sees the weights")])
def test_a_model_without_a_meaning_of_parts_refuses(dataset, name, reason):
    model = MODELS[name](epochs=1) if name == "mlp" else MODELS[name]()
    predictor = fit_predictor(dataset, "size", model)
    with pytest.raises(PredictorError, match=reason):
        predictor.explain(dataset.samples[:1])


def test_an_unknown_label_is_refused(predictors, dataset):
    with pytest.raises(PredictorError, match="no such class"):
        predictors["ridge", "classes"].explain(dataset.samples[:1], label=9)
    with pytest.raises(PredictorError, match="no label"):
        predictors["ridge", "size"].explain(dataset.samples[:1], label=9)
