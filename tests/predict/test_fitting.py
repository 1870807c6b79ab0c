"""Fitting never touches the test split, and says what it cannot do."""

from dataclasses import replace

import numpy as np
import pytest

from lorascope.errors import PredictorError
from lorascope.predict import MODELS, fit_predictor
from lorascope.predict.comparison import compare_models
from planted import planted_dataset


@pytest.fixture(scope="module")
def dataset():
    return planted_dataset(60)


def with_labels(dataset, name, values):
    return replace(dataset, labels={**dataset.labels, name: values}, _inputs={})


def test_labels_of_the_test_split_change_nothing(dataset):
    pairs = zip(dataset.labels["size"], dataset.splits, strict=True)
    spoiled = [1e6 if split == "test" else size for size, split in pairs]
    honest = fit_predictor(dataset, "size", MODELS["ridge"](size=4))
    blind = fit_predictor(with_labels(dataset, "size", spoiled), "size", MODELS["ridge"](size=4))
    assert honest.target == blind.target
    assert honest.predict(dataset.samples[:5]) == blind.predict(dataset.samples[:5])


def test_samples_without_a_label_are_left_out(dataset):
    values = [None if i % 3 == 0 else size for i, size in enumerate(dataset.labels["size"])]
    predictor = fit_predictor(with_labels(dataset, "size", values), "size", MODELS["ridge"](size=4))
    known = [i for i in dataset.where("train", "validation") if values[i] is not None]
    assert predictor.facts["samples"] == len(known)


def test_each_seed_parts_the_samples_anew(dataset):
    predictor = fit_predictor(dataset, "size", MODELS["ridge"](size=4), seeds=(0, 1, 2))
    sizes = [len(member.fitted.calibration[0]) for member in predictor.members]
    coefficients = [member.fitted.state()[0]["intercept"].tobytes() for member in predictor.members]
    assert all(0 < size < predictor.facts["samples"] for size in sizes)
    assert len(set(coefficients)) == 3


def test_a_seed_gives_the_same_predictor_twice(dataset):
    for name in ("ridge", "glnet"):
        model = MODELS[name](size=4) if name == "ridge" else MODELS[name](epochs=3)
        one, two = (fit_predictor(dataset, "classes", model, seeds=(5,)) for _ in range(2))
        assert one.predict(dataset.samples[:4]) == two.predict(dataset.samples[:4])


@pytest.mark.parametrize(
    ("target", "match"),
    [("sise", "did you mean 'size'"), ("rate", "hyperparameter is known before training"), ("zzz", "expected one of")],
)
def test_an_unknown_target_is_a_clear_error(dataset, target, match):
    with pytest.raises(PredictorError, match=match):
        fit_predictor(dataset, target, MODELS["ridge"]())


def test_too_few_samples_are_refused(dataset):
    with pytest.raises(PredictorError, match=r"too few.*at least 12"):
        fit_predictor(dataset.subset(range(10)), "size", MODELS["ridge"]())


def test_a_gauge_is_another_file_and_the_same_finetune(dataset):
    turned = dataset.in_random_gauge(condition=100.0, seed=3, dtype=np.float64)
    for before, after in zip(dataset.samples[:5], turned.samples[:5], strict=True):
        for site, update in before.read().items():
            other = after.read()[site]
            assert np.abs(update.factors(np.float64).B - other.factors(np.float64).B).max() > 0.01
            assert np.allclose(update.delta_weight(np.float64), other.delta_weight(np.float64), atol=1e-10)
    again = dataset.in_random_gauge(condition=100.0, seed=3, dtype=np.float64)
    first = next(iter(again.samples[0].read().values())).factors(np.float64).B
    assert np.array_equal(first, next(iter(turned.samples[0].read().values())).factors(np.float64).B)


def test_comparing_models_measures_each_clean_and_attacked(dataset):
    models = {"norms": MODELS["ridge"](features=("log-norm",)), "mlp": MODELS["mlp"](epochs=5)}
    rows = list(compare_models(dataset, ["size"], models, seeds=(0, 1)))
    assert [row.label for row in rows] == ["norms", "mlp"]
    norms, mlp = rows
    assert norms.clean.n == len(dataset.where("test"))
    assert norms.clean.metrics["r2"]["mean"] == pytest.approx(norms.gauged.metrics["r2"]["mean"], abs=1e-4)
    assert abs(mlp.clean.metrics["r2"]["mean"] - mlp.gauged.metrics["r2"]["mean"]) > 1e-2
    assert set(norms.as_dict()) >= {"model", "metrics", "in_random_gauge", "seconds"}
