"""Updates of a size that no finetune has: a model computes with them or names the adapter and the site."""

from dataclasses import replace

import numpy as np
import pytest

import lorascope
from lorascope.adapter import Adapter, LowRank
from lorascope.errors import PredictorError
from lorascope.predict import MODELS, fit_predictor
from lorascope.predict.soundness import open_dataset
from lorascope.zoo import import_zoo
from planted import planted_dataset


def enlarged(adapter, factor):
    """The adapter with one site so many times as large, in float64."""
    update = adapter["layers.0.v"]
    B, A, scale = update.factors(np.float64)
    return adapter.with_sites({**adapter.sites, "layers.0.v": LowRank(factor * B, A, scale)})


@pytest.fixture(scope="module")
def dataset():
    return planted_dataset(40)


def with_one(dataset, factor):
    large = enlarged(dataset.samples[1].read(), factor)
    samples = (dataset.samples[0], dataset.samples[1]._replace(read=lambda: large), *dataset.samples[2:])
    return replace(dataset, samples=samples, _inputs={}, _familiarities={})


@pytest.mark.parametrize("factor", [1e10, 1e22, 1e140])
@pytest.mark.parametrize("name", MODELS.names())
def test_it_is_computed_with_or_named(dataset, name, factor):
    few = {"epochs": 1} if "epochs" in MODELS[name].__dataclass_fields__ else {}
    is_network = bool(few)
    try:
        predictor = fit_predictor(with_one(dataset, factor), "first", MODELS[name](**few))
    except PredictorError as error:
        assert is_network and factor > 1e12
        assert error.key == "layers.0.v"
        assert "too large for a network" in error.what
        return
    assert not is_network or factor < 1e12
    [prediction] = predictor.predict(dataset.samples[2:3])
    assert np.isfinite(list(prediction.probabilities.values())).all()


def test_a_member_that_says_no_numbers_is_an_error(dataset, monkeypatch):
    kind = MODELS["ridge"]
    fit = kind.fit

    def broken(self, *arguments, **named):
        fitted = fit(self, *arguments, **named)
        fitted.calibration = (np.full_like(fitted.calibration[0], np.nan), fitted.calibration[1])
        return fitted

    monkeypatch.setattr(kind, "fit", broken)
    with pytest.raises(PredictorError, match="not finite"):
        fit_predictor(dataset, "size", kind(size=4))


def test_one_that_float64_cannot_hold_the_square_of_is_damaged(tmp_path):
    dataset = planted_dataset(20)
    lines = ["path,size"]
    for i, sample in enumerate(dataset.samples):
        adapter = sample.read()
        adapter = Adapter({site: LowRank(*update.factors(np.float64)) for site, update in adapter.items()})
        lorascope.write(enlarged(adapter, 1e160) if i == 3 else adapter, tmp_path / "adapters" / f"a{i}")
        lines.append(f"a{i},{dataset.labels['size'][i]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    import_zoo(tmp_path / "adapters", tmp_path / "labels.csv", out=tmp_path / "zoo")
    with pytest.raises(PredictorError, match="damaged adapters"):
        open_dataset(tmp_path / "zoo")
    whole = open_dataset(tmp_path / "zoo", skip_damaged=True)
    [defect] = whole.damaged
    assert defect.path.endswith("a3")
    assert "layers.0.v: the update is too large" in defect.what
    facts = fit_predictor(whole, "size", MODELS["ridge"](size=4)).facts
    assert facts["left_out"]["damaged"] == 1
