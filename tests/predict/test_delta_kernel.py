"""The kernel machine on ΔW against dense matrices, and what it keeps."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank
from lorascope.predict import MODELS, Sample, fit_predictor
from lorascope.predict.leave_one_out import fit_kernel_ridge, fit_ridge
from lorascope.predict.model import Structure
from lorascope.predict.models import delta_kernel
from lorascope.predict.models._singular import singular_inputs
from planted import SITES, planted_adapter, planted_dataset


def inputs_of(adapters):
    return singular_inputs([Sample(lambda a=a: a, {}) for a in adapters], Structure(SITES, 4))


@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_the_kernels_are_those_of_dense_updates(monkeypatch, block):
    monkeypatch.setattr(delta_kernel, "BLOCK_NUMBERS", block)
    rng = np.random.default_rng(0)
    some = [planted_adapter(rng, [1, 2], 2.0, rank=rank, dtype=np.float64) for rank in (2, 5, 3)]
    others = [planted_adapter(rng, [0], 0.3, rank=rank, dtype=np.float64) for rank in (4, 2)]
    kernels = delta_kernel.delta_kernels(inputs_of(some), inputs_of(others))
    for i, one in enumerate(some):
        for j, other in enumerate(others):
            pairs = [(one[site].delta_weight(np.float64), other[site].delta_weight(np.float64)) for site in SITES]
            norms = np.asarray([[np.linalg.norm(W) for W in pair] for pair in pairs])
            cosines = [np.sum(V * W) for V, W in pairs] / norms.prod(axis=1)
            distance = np.mean(np.diff(np.log(norms), axis=1) ** 2)
            assert kernels["direction"][i, j] == pytest.approx(np.mean(cosines), abs=1e-12)
            assert kernels["magnitude"][i, j] == pytest.approx(np.exp(-distance / 2), rel=1e-9)


def test_an_untrained_adapter_has_no_direction():
    zero = Adapter({site: LowRank(np.zeros((out, 1)), np.ones((1, in_))) for site, (out, in_) in SITES.items()})
    some = planted_adapter(np.random.default_rng(0), [1], 1.0)
    kernels = delta_kernel.delta_kernels(inputs_of([zero]), inputs_of([some]))
    assert kernels["direction"] == 0.0
    assert 0 <= kernels["magnitude"] < 1e-9


def test_it_finds_directions_and_magnitudes():
    dataset = planted_dataset()
    rng = np.random.default_rng(0)
    common = {
        name: (rng.standard_normal((out, 1)), rng.standard_normal((1, in_))) for name, (out, in_) in SITES.items()
    }

    def with_direction(sample, is_there):
        sites = {}
        for site, update in sample.read().items():
            B, A, scale = update.factors(np.float64)
            x, y = common[site]
            sites[site] = LowRank(np.hstack([scale * B, is_there * 0.5 * np.linalg.norm(B) * x]), np.vstack([A, y]))
        return sample._replace(read=lambda: Adapter(sites))

    pairs = zip(dataset.samples, dataset.labels["first"], strict=True)
    dataset = replace(dataset, samples=tuple(with_direction(*pair) for pair in pairs), _inputs={})
    test = dataset.where("test")
    for target, metric in (("first", "auroc"), ("size", "r2")):
        predictor = fit_predictor(dataset, target, MODELS["delta-kernel"]())
        inputs = predictor.model.inputs([dataset.samples[i] for i in test], predictor.structure)
        found = predictor.evaluate(inputs, [dataset.labels[target][i] for i in test]).metrics[metric]["mean"]
        assert found > 0.8


def test_memory_is_what_is_stated():
    dataset = planted_dataset(40, rank=4)
    predictor = fit_predictor(dataset, "classes", MODELS["delta-kernel"]())
    arrays, _ = predictor.members[0].fitted.state()
    kept = sum(array.nbytes for name, array in arrays.items() if name[0] in "USV")
    n = len(arrays["dual"])
    assert kept == n * sum(4 * 4 * (out + in_ + 1) for out, in_ in SITES.values())


def test_a_fitted_one_runs_without_torch(tmp_path):
    fit_predictor(planted_dataset(40), "size", MODELS["delta-kernel"]()).save(tmp_path / "p")
    code = (
        "import sys, numpy as np; from lorascope.predict import Predictor; "
        "from lorascope.adapter import Adapter, LowRank; "
        f"p = Predictor.load({str(tmp_path / 'p')!r}); "
        "print(p.predict([Adapter({'layers.0.q': LowRank(np.ones((14, 1)), np.ones((1, 10)))})])[0].value); "
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.isfinite(float(done.stdout))


def test_kernel_ridge_on_the_kernels_of_features_is_ridge():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 6)) + 3
    Y = X @ rng.standard_normal((6, 2)) + 0.3 * rng.standard_normal((30, 2))
    groups = np.repeat(np.arange(15), 2)
    Z = (X - X.mean(0)) / X.std(0)
    one = fit_ridge({"x": X}, Y, sample_groups=groups)
    two = fit_kernel_ridge({"x": Z @ Z.T}, Y, sample_groups=groups)
    uncentred = fit_kernel_ridge({"x": (Z + 1) @ (Z + 1).T}, Y, sample_groups=groups)
    new = rng.standard_normal((4, 6)) + 3
    at = (new - X.mean(0)) / X.std(0)
    assert np.allclose(one.predict({"x": new}), two.predict({"x": at @ Z.T}), atol=1e-9)
    assert np.allclose(one.predict({"x": new}), uncentred.predict({"x": (at + 1) @ (Z + 1).T}), atol=1e-9)
    assert np.allclose(one.left_out, two.left_out, atol=1e-9)


def test_kernels_that_say_nothing_predict_the_mean():
    Y = np.arange(6.0)[:, None]
    solution = fit_kernel_ridge({"constant": np.ones((6, 6)), "none": np.zeros((6, 6))}, Y)
    assert np.allclose(solution.predict({"constant": np.ones((2, 6)), "none": np.zeros((2, 6))}), 2.5)
