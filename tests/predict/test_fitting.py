"""Fitting never touches the test split, and says what it cannot do."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lorascope.errors import PredictorError
from lorascope.predict import MODELS, Predictor, fit_predictor
from lorascope.predict.conformal import Conformal
from lorascope.predict.fitting import fit_member
from lorascope.predict.leave_one_out import fit_ridge
from lorascope.predict.targets import Target
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


def test_adapters_of_the_test_split_are_not_read(dataset):
    def unread():
        raise AssertionError("a test adapter was read")

    samples = tuple(
        sample._replace(read=unread) if split == "test" else sample
        for sample, split in zip(dataset.samples, dataset.splits, strict=True)
    )
    blind = fit_predictor(replace(dataset, samples=samples, _inputs={}), "size", MODELS["ridge"](size=4))
    assert blind.facts["samples"] == len(dataset.where("train", "validation"))


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
    for name in ("ridge", "glnet", "mlp", "svd"):
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


def test_intervals_hold_for_new_groups_where_samples_come_in_groups():
    # four near copies of each adapter: leaving out one alone would promise what its siblings give away
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(12):
        X = rng.standard_normal((60, 40))
        truth = X[:, :1] + rng.standard_normal((60, 1))
        Z = np.repeat(X, 4, axis=0) + 1e-3 * rng.standard_normal((240, 40))
        Y, groups = np.repeat(truth, 4, axis=0), np.repeat(np.arange(60), 4)
        solution = fit_ridge({"x": Z[:160]}, Y[:160], sample_groups=groups[:160])
        half = Conformal.of(np.abs(solution.left_out - Y[:160])[:, 0], groups[:160]).quantile(0.9)
        shares.append(np.mean(np.abs(solution.predict({"x": Z[160:]}) - Y[160:]) <= half))
    assert 0.85 < np.mean(shares) < 0.95


def test_a_label_that_only_the_validation_part_has_is_no_reason_to_fail(dataset):
    values = [False] * len(dataset)
    values[int(dataset.where("train")[0])] = True
    for seed in range(8):  # for some seed the one positive falls into validation
        fit_predictor(with_labels(dataset, "rare", values), "rare", MODELS["ridge"](size=4), seeds=(seed,))


@pytest.mark.parametrize("name", ["kernels", "ridge"])
@pytest.mark.parametrize(("target", "metric", "seed"), [("noise", "kendall_tau", 0), ("coin", "auroc", 1)])
def test_the_order_of_left_out_means_is_not_taken_for_knowledge(dataset, name, target, metric, seed):
    """A mean without a sample lies against it: the order of such means is the reverse of the truth."""
    noise = np.random.default_rng(3).standard_normal(len(dataset)).tolist()
    told = with_labels(dataset, target, noise if target == "noise" else [True, False] * 30)
    alike = replace(told, samples=dataset.samples[:1] * 30 + dataset.samples[1:2] * 30)
    facts = fit_predictor(alike, target, MODELS[name](size=4), seeds=(seed,)).facts
    assert math.isnan(facts["metrics"][metric])
    assert facts["undefined"] == {metric: "the model says the mean of all adapters"}
    facts = fit_predictor(dataset, "size", MODELS[name](size=4)).facts
    assert facts["undefined"] == {} and facts["metrics"]["kendall_tau"] > 0.5


def test_hyperparameters_that_do_not_vary_are_saved_and_read(dataset, tmp_path):
    samples = tuple(s._replace(hyperparameters={**s.hyperparameters, "rank": 4}) for s in dataset.samples)
    constant = replace(dataset, samples=samples, hyperparameters=("rate", "rank"), _inputs={})
    predictor = fit_predictor(constant, "size", MODELS["hyperparameters"]())
    predictor.save(tmp_path / "p")
    assert Predictor.load(tmp_path / "p").predict(samples[:3]) == predictor.predict(samples[:3])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"dropout": 1.5}),
        ("mlp", {"epochs": 0}),
        ("glnet", {"hidden": 0}),
        ("glnet", {"gate": "foo"}),
        ("glnet", {"layers": 65536}),
        ("ridge", {"features": ()}),
        ("ridge", {"size": -1}),
    ],
)
def test_impossible_options_are_refused_by_name(name, options):
    with pytest.raises(PredictorError, match=f"{next(iter(options))}: the option has an impossible value"):
        MODELS[name](**options)


def test_the_logarithm_of_a_label_is_a_target():
    dataset = planted_dataset(20)
    rates = [float(i + 1) for i in range(20)]
    dataset = replace(dataset, labels={**dataset.labels, "rate": [None, *rates[1:]], "zero": [0.0, *rates[1:]]})
    assert dataset.values("log:rate") == [None, *[math.log(rate) for rate in rates[1:]]]
    with pytest.raises(PredictorError, match="no logarithm"):
        dataset.values("log:zero")
    with pytest.raises(PredictorError, match="no logarithm"):
        dataset.values("log:kind")
    with pytest.raises(PredictorError, match="no such label"):
        dataset.values("log:rats")


@pytest.mark.parametrize("count", [2, 3, 5])
def test_of_few_groups_a_network_is_stopped_by_a_whole_one(dataset, count):
    groups = [f"group {i % count}" for i in range(len(dataset))]
    structure = dataset.structure(range(len(dataset)))
    inputs = MODELS["svd"]().inputs(dataset.samples, structure)
    target = Target.of("size", dataset.labels["size"])
    truth = target.encode(dataset.labels["size"])
    held = set()
    for seed in range(12):
        _, member = fit_member(MODELS["svd"](epochs=1, hidden=8), inputs, truth, groups, target, structure, seed=seed)
        assert len(member.fitted.calibration[1])
        assert not {*member.held.groups} & {*member.train.groups}
        held |= {*member.held.groups}
    assert len(held) > 1  # the seed parts them anew


@pytest.mark.parametrize("name", ["mlp", "o-align", "svd"])
def test_a_network_without_samples_to_calibrate_on_promises_no_interval(dataset, name):
    """Residuals of training samples are no left-out residuals."""
    few = replace(dataset, groups=("one",) * len(dataset), _inputs={})
    predictor = fit_predictor(few, "size", MODELS[name](epochs=2, hidden=8))
    [member] = predictor.members
    assert not len(member.fitted.calibration[1])
    assert predictor.facts["metrics"] == {}
    [prediction] = predictor.predict(dataset.samples[:1])
    assert math.isfinite(prediction.value)
    assert prediction.interval is None


def test_scores_of_a_network_without_calibration_are_logits(dataset):
    few = replace(dataset, groups=("one",) * len(dataset), _inputs={})
    predictor = fit_predictor(few, "first", MODELS["svd"](epochs=2, hidden=8))
    [prediction] = predictor.predict(dataset.samples[:1])
    inputs = MODELS["svd"]().inputs(dataset.samples[:1], predictor.structure)
    logit = predictor.members[0].fitted.scores(inputs)[0, 0]
    assert prediction.probabilities["True"] == pytest.approx(1 / (1 + np.exp(-logit)))
    assert prediction.classes is None


@pytest.mark.parametrize("limit", ["AT_ONCE", "NUMBERS_AT_ONCE"])
def test_predictions_hold_the_inputs_of_a_block_of_adapters_at_a_time(dataset, monkeypatch, limit):
    predictor = fit_predictor(dataset, "size", MODELS["ridge"](size=4))
    whole = predictor.predict(dataset.samples[:10])
    one = predictor.structure.rank * sum(map(sum, predictor.structure.sites.values()))
    room = {"AT_ONCE": 4, "NUMBERS_AT_ONCE": 5 * one - 1}
    monkeypatch.setattr(f"lorascope.predict.predictor.{limit}", room[limit])
    is_open = []

    def watched(sample):
        is_open.append(sample)
        return sample

    counts = []
    in_blocks = predictor.predict((watched(s) for s in dataset.samples[:10]), lambda _: counts.append(len(is_open)))
    assert max(np.diff([0, *sorted(set(counts))])) <= 4
    assert [one.value for one in in_blocks] == pytest.approx([one.value for one in whole])
