"""Predictors on disk: what is written is whole, and what is read is not trusted."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorascope.errors import LorascopeError, OutputError, PredictorError
from lorascope.predict import MODELS, Predictor, fit_predictor
from planted import planted_dataset


@pytest.fixture(scope="module")
def predictor():
    return fit_predictor(planted_dataset(40), "size", MODELS["ridge"](size=4), seeds=(0, 1))


@pytest.fixture
def saved(predictor, tmp_path):
    predictor.save(tmp_path / "p")
    return tmp_path / "p"


def edit(saved, change):
    config = json.loads((saved / "predictor.json").read_text())
    change(config)
    (saved / "predictor.json").write_text(json.dumps(config))


def test_it_states_where_it_comes_from(saved):
    config = json.loads((saved / "predictor.json").read_text())
    assert config["facts"]["zoo"] == "planted"
    assert set(config["facts"]) == {"zoo", "split", "samples", "left_out", "versions", "metrics"}
    assert [member["seed"] for member in config["members"]] == [0, 1]
    assert sorted(path.name for path in saved.iterdir()) == ["predictor.json", "weights.safetensors"]


def test_an_older_predictor_is_replaced_and_anything_else_is_not(predictor, saved, tmp_path):
    predictor.save(saved)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("dear")
    with pytest.raises(OutputError, match="something else"):
        predictor.save(other)
    with pytest.raises(OutputError):
        predictor.save(other / "thesis.tex")
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_a_place_that_cannot_be_written_leaves_nothing(predictor, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        predictor.save(tmp_path / "file" / "p")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


CHANGES = {
    "older schema": lambda c: c.update(schema_version=1),
    "newer schema": lambda c: c.update(schema_version=3),
    "no schema": lambda c: c.pop("schema_version"),
    "unknown model": lambda c: c["model"].update(name="os.system"),
    "unknown option": lambda c: c["model"]["options"].update(evil=1),
    "gigantic option": lambda c: c["model"]["options"].update(size=10**12),
    "no members": lambda c: c.update(members=[]),
    "more members than weights": lambda c: c["members"].append(c["members"][0]),
    "structure of the wrong kind": lambda c: c.update(structure=[]),
    "target of the wrong kind": lambda c: c["target"].update(mean="x"),
    "weights of an unknown feature": lambda c: c["members"][0]["values"]["weights"].update(other=1.0),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_changed_configuration_is_one_clear_error(saved, name):
    edit(saved, CHANGES[name])
    with pytest.raises(LorascopeError) as caught:
        Predictor.load(saved)
    assert caught.value.file


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_configuration_is_one_clear_error(saved, content):
    (saved / "predictor.json").write_bytes(content)
    with pytest.raises(PredictorError):
        Predictor.load(saved)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_cut_weights_are_one_clear_error(saved, cut):
    path = saved / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(PredictorError):
        Predictor.load(saved)


def test_weights_that_are_not_numbers_are_refused(saved):
    arrays = load_file(saved / "weights.safetensors")
    arrays["0.model.intercept"] = np.full_like(arrays["0.model.intercept"], np.nan)
    save_file(arrays, saved / "weights.safetensors")
    with pytest.raises(PredictorError, match="non-finite"):
        Predictor.load(saved)


def test_what_is_no_predictor(tmp_path, saved):
    with pytest.raises(PredictorError, match="not a predictor"):
        Predictor.load(tmp_path)
    shutil.rmtree(saved)
    with pytest.raises(PredictorError, match="not a predictor"):
        Predictor.load(saved)


def test_the_adapters_seen_in_fitting_are_counted(predictor):
    dataset = planted_dataset(40)
    inputs = predictor.model.inputs(dataset.samples, predictor.structure)
    evaluation = predictor.evaluate(inputs, dataset.labels["size"], dataset.groups)
    assert evaluation.seen == sum(split != "test" for split in dataset.splits)
