"""A damaged adapter is named before anything is learnt, and left out only where that was asked for."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lorascope
from lorascope.errors import LorascopeError, PredictorError
from lorascope.predict import MODELS, Dataset, fit_predictor
from lorascope.predict.soundness import open_dataset
from lorascope.zoo import Zoo, import_zoo
from planted import planted_dataset


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A zoo of 40 adapters in files."""
    root = tmp_path_factory.mktemp("sound")
    dataset = planted_dataset(40)
    lines = ["path,size"]
    for i, sample in enumerate(dataset.samples):
        lorascope.write(sample.read(), root / "adapters" / f"a{i}")
        lines.append(f"a{i},{dataset.labels['size'][i]}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    import_zoo(root / "adapters", root / "labels.csv", out=root / "zoo")
    return root / "zoo"


@pytest.fixture
def zoo(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "zoo")


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def remove(path):
    shutil.rmtree(path.parent)


def other_numbers(path):
    save_file({name: array + 1 for name, array in load_file(path).items()}, path)


DAMAGES = {"cut": cut, "removed": remove, "other numbers": other_numbers}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_damaged_adapter_is_an_error_that_names_it(zoo, name):
    path = sorted(zoo.rglob("*.safetensors"))[0]
    DAMAGES[name](path)
    with pytest.raises(PredictorError, match="damaged adapters") as caught:
        open_dataset(zoo)
    assert caught.value.found.startswith("1 damaged: ")
    assert path.parent.name in caught.value.found
    assert "--skip-damaged" in caught.value.hint


@pytest.mark.parametrize("name", list(DAMAGES))
def test_asked_to_it_is_left_out_named_and_counted(zoo, name):
    path = sorted(zoo.rglob("*.safetensors"))[0]
    DAMAGES[name](path)
    dataset = open_dataset(zoo, skip_damaged=True)
    assert len(dataset) == 39
    [defect] = dataset.damaged
    assert path.parent.name in defect.path
    assert defect.id not in dataset.ids
    assert dataset.subset(range(10)).damaged == dataset.damaged  # a part of it remembers
    facts = fit_predictor(dataset, "size", MODELS["ridge"](size=4)).facts
    assert facts["left_out"]["damaged"] == 1


def test_a_number_that_is_none_is_damage_though_the_bytes_are_as_recorded(tmp_path):
    dataset = planted_dataset(20)
    lines = ["path,size"]
    for i, sample in enumerate(dataset.samples):
        lorascope.write(sample.read(), tmp_path / "adapters" / f"a{i}")
        lines.append(f"a{i},{i}")
    [path] = (tmp_path / "adapters" / "a3").glob("*.safetensors")
    arrays = load_file(path)
    next(iter(arrays.values()))[0, 0] = np.nan
    save_file(arrays, path)
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    report = import_zoo(tmp_path / "adapters", tmp_path / "labels.csv", out=tmp_path / "zoo")
    if report.unreadable:  # the import has said so, and the zoo leaves it out itself
        assert len(open_dataset(tmp_path / "zoo")) == 19
        return
    [defect] = open_dataset(tmp_path / "zoo", skip_damaged=True).damaged
    assert "not finite" in defect.what


def test_many_are_counted_and_the_first_ones_named(zoo):
    for path in sorted(zoo.rglob("*.safetensors"))[:6]:
        cut(path)
    with pytest.raises(PredictorError) as caught:
        open_dataset(zoo)
    assert caught.value.found.startswith("6 damaged: ")
    assert caught.value.found.endswith("and 3 more")


def test_only_the_wanted_splits_are_looked_at(zoo):
    opened = Zoo.open(zoo)
    row = opened.split("test")[0]
    cut(next(opened.adapter_path(row).rglob("*.safetensors")))
    taught = open_dataset(zoo, within=("train", "validation"))
    assert set(taught.splits) <= {"train", "validation"}
    with pytest.raises(PredictorError):
        open_dataset(zoo, within=("test",))


def test_a_zoo_with_nothing_left_is_an_error(zoo):
    for path in zoo.rglob("*.safetensors"):
        cut(path)
    with pytest.raises(LorascopeError, match="no adapter to use"):
        open_dataset(zoo, skip_damaged=True)


def test_a_sound_zoo_is_the_same_dataset(clean):
    looked = []
    dataset, plain = open_dataset(clean, advance=looked.append), Dataset.of(clean)
    assert (dataset.ids, dataset.splits, dataset.digest) == (plain.ids, plain.splits, plain.digest)
    assert dataset.damaged == ()
    assert sum(looked) == 40
