"""The default model where there is little to learn from: few adapters, constant features or targets, one kernel."""

import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank
from lorascope.predict import MODELS, Dataset, Predictor, Sample, fit_predictor
from lorascope.predict.kernel import Tokens
from lorascope.predict.kernel_levels import bundles_of, levels_of, weights_by_level
from lorascope.predict.kernel_machine import Comparison, Part
from lorascope.predict.kernels.log_spectrum import LogSpectrumKernel
from lorascope.predict.model import Split
from lorascope.predict.targets import Target
from lorascope.predict.tokens import sites_of
from lorascope.symmetry import gauged, random_gauge
from planted import planted_dataset

SITES = {"layers.0.q": (8, 6), "layers.1.q": (8, 6)}


def adapter(rng, *, untrained=()):
    return Adapter(
        {
            name: LowRank(
                ((name not in untrained) * rng.standard_normal((out, 2))).astype(np.float32),
                rng.standard_normal((2, in_)).astype(np.float32),
            )
            for name, (out, in_) in SITES.items()
        }
    )


def dataset_of(adapters, values):
    names = tuple(map(str, range(len(adapters))))
    samples = tuple(Sample(lambda one=one: one, {}) for one in adapters)
    return Dataset(samples, {"value": list(values)}, names, ("train",) * len(names), names, (), "little")


def fitted(adapters, encoded, target, model=None):
    model, dataset = model or MODELS["kernels"](), dataset_of(adapters, [0.0] * len(adapters))
    structure = dataset.structure(range(len(adapters)))
    split = Split(model.inputs(dataset.samples, structure), np.asarray(encoded, np.float64), dataset.groups)
    return model.fit(split, split, target, structure, seed=0), split


def test_labels_that_nothing_tells_are_not_told_by_leave_one_out():
    """More weights than adapters must not fit the very residuals that intervals are made from."""
    told = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        y = rng.standard_normal((24, 1))
        found, _ = fitted([adapter(rng) for _ in y], y, Target("value", "regression"))
        told.append(1 - ((found.calibration[0] - y) ** 2).mean() / y.var())
    assert np.mean(told) < 0.2  # without a pull that grows as adapters get fewer: 0.43


def test_each_of_many_classes_is_evidence_of_which_kernel_tells_them():
    """One of six kernels tells all: few adapters show it, where they have many classes."""
    shares = []
    for columns in (1, 10):
        rng = np.random.default_rng(columns)
        told, *others = (rng.standard_normal((30, 8)) for _ in range(6))
        grams = [(Part(str(k), -1, 1.0), np.float32(X @ X.T / 8)) for k, X in enumerate([told, *others])]
        Y = told @ rng.standard_normal((8, columns)) / np.sqrt(8) + 0.5 * rng.standard_normal((30, columns))
        [level] = weights_by_level(bundles_of(grams, [""]), Y - Y.mean(axis=0), [], [[""]])
        shares.append(level.weights[grams[0][0]] / sum(level.weights.values()))
    assert shares[1] > 0.8 > shares[0]  # six draws: .85 to .91 of ten columns; held by adapters alone, .51 to .65


@pytest.mark.parametrize("target", [Target("value", "regression"), Target("value", "binary", (False, True))])
def test_a_target_that_is_constant_among_the_training_adapters_is_predicted_as_such(target):
    rng = np.random.default_rng(0)
    found, split = fitted([adapter(rng) for _ in range(14)], np.ones((14, 1)), target)
    scores = found.scores(split.inputs)
    assert np.allclose(scores, scores[0])
    assert scores[0, 0] > 4 if target.is_classification else scores[0, 0] == pytest.approx(1.0)  # a logit, or a value


def test_a_predictor_of_adapters_with_an_untrained_site_can_be_read_back(tmp_path):
    rng = np.random.default_rng(0)
    adapters = [adapter(rng, untrained={"layers.1.q"}) for _ in range(24)]
    values = [float(np.log(one.norm())) for one in adapters]
    predictor = fit_predictor(dataset_of(adapters, values), "value", MODELS["kernels"]())
    predictor.save(tmp_path / "p")
    before, after = (one.predict(adapters[:3]) for one in (predictor, Predictor.load(tmp_path / "p")))
    assert [one.value for one in before] == [one.value for one in after]


@pytest.mark.parametrize("kernels", [("size",), ("column-space", "norms")])
def test_adapters_that_are_all_alike_are_predicted_by_the_mean(kernels):
    rng = np.random.default_rng(0)
    y = rng.standard_normal((16, 1))
    found, split = fitted([adapter(rng)] * 16, y, Target("value", "regression"), MODELS["kernels"](kernels=kernels))
    # the mean has a prior of finite variance
    assert np.allclose(found.scores(split.inputs), y.mean(), rtol=0, atol=0.1 * y.std())
    assert np.ptp(found.scores(split.inputs)) < 1e-9


def test_what_varies_by_the_rounding_of_a_gauge_alone_is_constant():
    rng = np.random.default_rng(0)
    one = adapter(rng)
    turned = [gauged(one, lambda rank: random_gauge(rank, condition=100.0, rng=rng)) for _ in range(20)]
    model, dataset = MODELS["kernels"](), dataset_of(turned, [0.0] * 20)
    structure = dataset.structure(range(20))
    comparison = Comparison.of(model.compared(), sites_of(structure), model.inputs(dataset.samples, structure))
    assert {site for _, site in comparison.centres} == {-1}
    assert not any(centre.scale.any() for centre in comparison.centres.values())


def test_without_kernels_that_a_rank_would_shift_there_is_one_function():
    rng = np.random.default_rng(0)
    adapters = [adapter(rng) for _ in range(30)]
    y = np.asarray([[np.log(one.norm())] for one in adapters])
    model = MODELS["kernels"](kernels=("column-space", "size"))
    found, split = fitted(adapters, (y - y.mean()) / y.std(), Target("value", "regression"), model)
    assert np.array_equal(found.machine(split.inputs), found.at_any_rank(split.inputs))


def test_large_singular_values_stay_finite_in_float32():
    S = np.full((1, 2), 1e25, np.float32)
    features = LogSpectrumKernel()(Tokens(np.zeros((1, 3, 2), np.float32), S, np.zeros((1, 3, 2), np.float32)))
    assert features.dtype == np.float32
    assert np.allclose(features[0, :3], np.log(1e25), atol=0.5)


def test_a_bundle_holds_the_mean_of_its_parts():
    dataset = planted_dataset(20)
    model, structure = MODELS["kernels"](), dataset.structure(range(20))
    sites = sites_of(structure)
    inputs = model.inputs(dataset.samples, structure)
    grams = dict(Comparison.of(model.compared(), sites, inputs).grams(inputs))
    kinds = levels_of(sites)[1]
    bundles = bundles_of(grams.items(), kinds)
    assert sorted(part for bundle in bundles for part in bundle.parts) == sorted(grams)
    assert max(len(bundle.parts) for bundle in bundles) == 2  # layers.0.q and layers.1.q
    for bundle in bundles:
        mean = np.mean([grams[part] for part in bundle.parts], axis=0)
        assert np.allclose(bundle.gram, mean, rtol=0, atol=1e-6 * np.abs(mean).max())
