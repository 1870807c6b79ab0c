"""Predictors on adapters that were really trained: another gauge, another rank, another writer, same prediction."""

import warnings

import numpy as np
import pytest

import lorascope
from lorascope.adapter import Adapter, LowRank
from lorascope.forge import forge, load_base
from lorascope.predict import MODELS, Dataset, fit_predictor
from lorascope.symmetry import pad_rank
from lorascope.testing import product_condition

INVARIANT = ("ridge", "glnet", "svd")
SENSITIVITY = 1e4  # as in test_models.py


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("forged") / "zoo"
    forge("digits-vit", 64, path, seed=1, settings={"base_steps": 100, "steps": 30})
    return path


@pytest.fixture(scope="module")
def dataset(zoo):
    return Dataset.of(zoo)


@pytest.fixture(scope="module")
def predictors(dataset):
    models = {"ridge": MODELS["ridge"](), "glnet": MODELS["glnet"](epochs=10), "svd": MODELS["svd"](epochs=10)}
    return {
        (name, target): fit_predictor(dataset, target, model)
        for name, model in models.items()
        for target in ("classes", "test_accuracy")
    }


def scores(predictor, samples):
    return predictor.members[0].fitted.scores(predictor.model.inputs(samples, predictor.structure))


@pytest.mark.parametrize("target", ["classes", "test_accuracy"])
@pytest.mark.parametrize("name", INVARIANT)
def test_another_gauge(predictors, dataset, name, target):
    predictor, test = predictors[name, target], dataset.subset(dataset.where("test"))
    clean = scores(predictor, test.samples)
    exact = scores(predictor, test.in_random_gauge(condition=100.0, dtype=np.float64).samples)
    worst = max(
        product_condition(*update.factors(np.float64)[:2]) for s in test.samples for update in s.read().values()
    )
    assert np.abs(exact - clean).max() < SENSITIVITY * np.finfo(float).eps * worst * 100.0
    rounded = scores(predictor, test.in_random_gauge(condition=100.0, dtype=np.float32).samples)
    assert np.quantile(np.abs(rounded - clean).max(axis=1), 0.99) < 1e-4


@pytest.mark.parametrize("name", INVARIANT)
def test_a_padded_rank(predictors, dataset, name):
    predictor, sample = predictors[name, "test_accuracy"], dataset.samples[0]

    def padded():
        sites = {}
        for site, update in sample.read().items():
            B, A = pad_rank(*update.factors(np.float64)[:2], 7)
            sites[site] = LowRank(B, A, update.scale)
        return Adapter(sites)

    moved = scores(predictor, [sample._replace(read=padded)])
    assert np.allclose(moved, scores(predictor, [sample]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", INVARIANT)
def test_written_by_peft_and_read_again(predictors, dataset, zoo, name, tmp_path):
    peft = pytest.importorskip("peft")
    from lorascope.zoo import Zoo

    row = Zoo.open(zoo).rows()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns that the base is no model of the hub
        model = peft.PeftModel.from_pretrained(load_base(zoo), zoo / row["path"])
        model.save_pretrained(tmp_path / "again")
    again = lorascope.read(tmp_path / "again")
    for target in ("classes", "test_accuracy"):
        predictor = predictors[name, target]
        before = scores(predictor, dataset.samples[:1])
        after = scores(predictor, [dataset.samples[0]._replace(read=lambda: again)])
        # the same float32 numbers in another file
        assert np.array_equal(before, after)
