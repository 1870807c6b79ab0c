"""Predictors on disk: what is written is whole, and what is read is not trusted."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorascope.errors import LorascopeError, OutputError, PredictorError
from lorascope.predict import MODELS, Predictor, fit_predictor, store
from lorascope.predict.model import Structure
from lorascope.predict.seal import sealed
from lorascope.predict.store import SCHEMA_VERSION
from planted import planted_dataset


@pytest.fixture(scope="module")
def predictor():
    return fit_predictor(planted_dataset(40), "size", MODELS["ridge"](size=4), seeds=(0, 1))


@pytest.fixture
def saved(predictor, tmp_path):
    predictor.save(tmp_path / "p")
    return tmp_path / "p"


def edit(saved, change):
    """Change the configuration as an author would, with the digests that belong to it."""
    config = json.loads((saved / "predictor.json").read_text())
    change(config)
    write(saved, config, load_file(saved / "weights.safetensors"))


def replace_arrays(saved, arrays):
    """Change the arrays as an author would."""
    write(saved, json.loads((saved / "predictor.json").read_text()), arrays)


def write(saved, config, arrays):
    (saved / "predictor.json").write_text(json.dumps(sealed(config, arrays)))
    save_file(arrays, saved / "weights.safetensors")


def test_it_states_where_it_comes_from(saved):
    config = json.loads((saved / "predictor.json").read_text())
    assert config["facts"]["zoo"] == "planted"
    assert set(config["facts"]) == {"zoo", "split", "samples", "left_out", "versions", "metrics", "undefined"}
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
    "older schema": lambda c: c.update(schema_version=2),
    "newer schema": lambda c: c.update(schema_version=SCHEMA_VERSION + 1),
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
    replace_arrays(saved, arrays)
    with pytest.raises(PredictorError, match="non-finite"):
        Predictor.load(saved)


DAMAGES = {
    "intervals gone": lambda arrays: [arrays.pop(name) for name in ("intervals.values", "intervals.shares")],
    "an array more": lambda arrays: arrays.update({"0.model.other": np.zeros(3)}),
    "a bit flipped": lambda arrays: arrays["0.model.intercept"].view(np.uint8).__setitem__(0, 7),
    "another dtype": lambda arrays: arrays.update(groups=arrays["groups"].view(np.uint64)),
    "another shape": lambda arrays: arrays.update({"0.slope": arrays["0.slope"].reshape(1, -1)}),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damage_is_noticed_and_the_array_is_named(saved, name):
    arrays = load_file(saved / "weights.safetensors")
    before = dict(arrays)
    DAMAGES[name](arrays)
    save_file(arrays, saved / "weights.safetensors")
    with pytest.raises(PredictorError) as caught:
        Predictor.load(saved)
    assert caught.value.key in {*before, *arrays}
    assert "fit anew" in caught.value.hint


def test_a_value_that_was_altered_is_noticed(saved):
    text = (saved / "predictor.json").read_text()
    assert '"seed": 1' in text
    (saved / "predictor.json").write_text(text.replace('"seed": 1', '"seed": 2', 1))
    with pytest.raises(PredictorError, match="not what was written"):
        Predictor.load(saved)


@pytest.mark.parametrize("name", MODELS.names())
def test_an_array_that_a_model_does_not_know_is_refused_by_name(tmp_path, name):
    """Also where the digests are right: what is not understood is not carried along."""
    model = MODELS[name]
    options = {"epochs": 1} if "epochs" in model.__dataclass_fields__ else {}
    fit_predictor(planted_dataset(30), "first", model(**options)).save(tmp_path / "p")
    arrays = load_file(tmp_path / "p" / "weights.safetensors")
    for extra in ("0.model.strange", "strange", "familiarity.strange", "1.slope"):
        replace_arrays(tmp_path / "p", {**arrays, extra: np.zeros(3)})
        with pytest.raises(PredictorError, match=r"strange|1\.slope"):
            Predictor.load(tmp_path / "p")


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


@pytest.fixture(scope="module")
def kernels():
    return fit_predictor(planted_dataset(40), "size", MODELS["kernels"](size=4))


@pytest.fixture
def kept(kernels, tmp_path):
    kernels.save(tmp_path / "k")
    return tmp_path / "k"


def test_every_array_of_a_kernel_predictor_is_needed_in_its_very_shape(kernels, kept):
    """What is missing or of another shape is never left out in silence, nor met first on somebody's adapter."""
    arrays = load_file(kept / "weights.safetensors")
    for name, array in arrays.items():
        if name == "groups":
            continue
        others = {
            "missing": None,
            "another axis": array[None],
            "empty": array.reshape(-1)[:0],
            "not a number": np.full_like(array, np.nan),
        }
        for change, other in others.items():
            changed = {**arrays, name: other} if other is not None else {k: v for k, v in arrays.items() if k != name}
            replace_arrays(kept, changed)
            with pytest.raises(PredictorError):
                Predictor.load(kept)
                pytest.fail(f"{change}: {name}")
    replace_arrays(kept, {**arrays, "0.model.seen.slope.column-space.99": np.zeros((1, 1))})
    with pytest.raises(PredictorError, match="belong to no part"):
        Predictor.load(kept)


IMPOSSIBLE = {
    "a spread of zero": lambda c: c["target"].update(spread=0.0),
    "a negative spread": lambda c: c["target"].update(spread=-1.0),
    "an infinite mean": lambda c: c["target"].update(mean=float("inf")),
    "a mean that overflows": lambda c: c["target"].update(mean=1e308, spread=1e308),
    "a name that is none": lambda c: c["target"].update(name=["size"]),
    "classes that are none": lambda c: c["target"].update(classes="ab"),
    "an unknown task": lambda c: c["target"].update(task="os.system"),
    "a classification without classes": lambda c: c["target"].update(task="multi-class"),
    "no rank": lambda c: c["structure"].update(rank=0),
    "a gigantic rank": lambda c: c["structure"].update(rank=10**12),
    "a site without rows": lambda c: c["structure"]["sites"].update({"layers.0.q": [0, 10]}),
    "a gigantic site": lambda c: c["structure"]["sites"].update({"layers.0.q": [10**9, 10**9]}),
    "an infinite length": lambda c: first_lengths(c).__setitem__(0, float("inf")),
    "a length of zero": lambda c: first_lengths(c).__setitem__(0, 0.0),
    "a length that is none": lambda c: first_lengths(c).__setitem__(0, float("nan")),
    "a length too many": lambda c: first_lengths(c).append(9.0),
    "a length too few": lambda c: first_lengths(c).pop(),
    "ranks that are none": lambda c: c["members"][0]["values"].update(ranks=["a", "b"]),
    "other principal directions": lambda c: c["model"]["options"].update(principal=3),
    "another choice of kernels": lambda c: c["model"]["options"].update(kernels=["delta"]),
}


def first_lengths(config):
    return next(iter(config["members"][0]["values"]["seen"]["lengths"].values()))


@pytest.mark.parametrize("name", list(IMPOSSIBLE))
def test_an_impossible_configuration_of_a_kernel_predictor_is_one_clear_error(kept, name):
    edit(kept, IMPOSSIBLE[name])
    with pytest.raises(PredictorError) as caught:
        Predictor.load(kept)
    assert caught.value.file


@pytest.mark.parametrize("part", ["coefficients", "means"])
def test_coefficients_and_means_of_ridge_have_the_shapes_of_its_features(saved, part):
    arrays = load_file(saved / "weights.safetensors")
    name = f"0.model.{part}.log-norm"
    for other in (arrays[name][:-1], arrays[name].repeat(3, axis=1)):
        replace_arrays(saved, {**arrays, name: np.ascontiguousarray(other)})
        with pytest.raises(PredictorError, match="damaged"):
            Predictor.load(saved)
    del arrays[name]
    replace_arrays(saved, arrays)
    with pytest.raises(PredictorError, match="damaged"):
        Predictor.load(saved)


def test_a_rank_that_a_file_names_does_not_say_how_much_memory_is_taken(kernels, kept, monkeypatch):
    monkeypatch.setattr(store, "MAXIMUM_NUMBERS", 3 * 5000)
    [update] = store._random(Structure({"q": (2000, 3000)}, store.MAXIMUM_RANK), 1.0).values()
    assert update.rank == 3
    monkeypatch.setattr(store, "MAXIMUM_NUMBERS", 1)  # of rank 1 all the same
    assert Predictor.load(kept).structure == kernels.structure
