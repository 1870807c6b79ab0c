"""Tokens on disk are those in memory, whatever is asked of them; a fit holds one site of them; no room is an error."""

import shutil
import tempfile
import tracemalloc
from collections import namedtuple

import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import PredictorError
from lorascope.predict import MODELS, Sample, fit_predictor, predictor, principal, tokens
from lorascope.predict.dataset import rows_of
from lorascope.predict.model import Structure
from lorascope.predict.principal import Principal
from lorascope.predict.stored_tokens import StoredTokens
from planted import planted_dataset


@pytest.fixture
def stored(monkeypatch):
    """All tokens of more than one adapter go to disk, in blocks of a few adapters and sites."""
    monkeypatch.setattr(tokens, "IN_MEMORY", 0)
    monkeypatch.setattr(tokens, "BLOCK", 7)


def inputs_of(dataset):
    structure = dataset.structure(range(len(dataset)))
    return MODELS["kernels"](principal=6).inputs(dataset.samples, structure)


def test_what_is_stored_are_the_very_numbers(stored, monkeypatch):
    mixed = planted_dataset(11, rank=4).samples[:5] + planted_dataset(11, rank=9).samples
    structure = planted_dataset(11).structure(range(11))
    model = MODELS["kernels"]()
    on_disk = model.inputs(mixed, structure)
    monkeypatch.setattr(tokens, "IN_MEMORY", 1 << 20)
    in_memory = model.inputs(mixed, structure)
    assert on_disk.keys() == in_memory.keys()
    assert {name for name, array in on_disk.items() if isinstance(array, StoredTokens)} == {
        "left0",
        "right0",
        "left1",
        "right1",
    }
    some = np.array([12, 3, 3, 0, 15])
    for name, array in in_memory.items():
        found = on_disk[name]
        assert found.shape == array.shape and len(found) == len(array)
        assert np.array_equal(np.asarray(found), array)
        assert np.array_equal(np.asarray(found[some]), array[some])
        assert np.array_equal(np.asarray(found[some][np.array([2, 0])]), array[some][[2, 0]])
        assert np.array_equal(np.asarray(found[np.arange(16) % 2 == 0]), array[::2])
        for site in range(array.shape[1]) if found is not array else ():
            assert np.array_equal(found[2:9, site], array[2:9, site])


@pytest.mark.parametrize("target", ["size", "classes"])
def test_a_predictor_from_tokens_on_disk_says_what_one_from_memory_says(stored, monkeypatch, target):
    on_disk = fit_predictor(planted_dataset(60), target, MODELS["kernels"](principal=6), seeds=(0, 1))
    monkeypatch.setattr(tokens, "IN_MEMORY", 1 << 20)
    dataset = planted_dataset(60)
    in_memory = fit_predictor(dataset, target, MODELS["kernels"](principal=6), seeds=(0, 1))
    adapters = [sample.read() for sample in dataset.samples[:9]]
    assert on_disk.predict(adapters) == in_memory.predict(adapters)


def test_adapters_are_evaluated_as_many_as_there_is_room_for(monkeypatch):
    dataset = planted_dataset(60)
    fitted = fit_predictor(dataset, "size", MODELS["kernels"](size=4))
    test = dataset.subset(dataset.where("test"))
    whole = fitted.evaluate_adapters(test.samples, test.values("size"), test.groups)
    blocks = []
    given = tokens.tokens_of
    monkeypatch.setattr(
        "lorascope.predict.models.kernels.tokens_of", lambda s, *a, **o: (blocks.append(len(s)), given(s, *a, **o))[1]
    )
    monkeypatch.setattr(predictor, "AT_ONCE", 5)
    again = fitted.evaluate_adapters(test.samples, test.values("size"), test.groups)
    assert blocks == [5, 5, 2]
    assert again.n == whole.n == 12 and again.abstained == whole.abstained
    for name, value in whole.metrics.items():
        assert again.metrics[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name


def test_directions_and_reduced_tokens_do_not_depend_on_how_many_adapters_are_taken_at_once(monkeypatch):
    inputs = inputs_of(planted_dataset(30))
    whole = Principal.of(inputs, 6)
    monkeypatch.setattr(principal, "NUMBERS", 1)
    one_by_one = Principal.of(inputs, 6)
    eps = np.finfo(np.float64).eps
    for name, basis in whole.bases.items():
        projector, other = (E @ np.swapaxes(E, -1, -2) for E in (basis, one_by_one.bases[name]))
        assert np.allclose(projector, other, rtol=0, atol=1e4 * eps)
    assert all(np.allclose(one, whole(inputs)[name], rtol=0, atol=1e2 * eps) for name, one in whole(inputs).items())


def test_a_fit_holds_one_site_of_stored_tokens_at_a_time(monkeypatch):
    monkeypatch.setattr(tokens, "IN_MEMORY", 0)
    monkeypatch.setattr(tokens, "NUMBERS", 1)  # one adapter after another
    monkeypatch.setattr(principal, "NUMBERS", 1 << 14)
    structure = Structure({f"blocks.{i}.q": (256, 256) for i in range(8)}, 4)
    rng = np.random.default_rng(0)

    def adapter():
        factors = rng.standard_normal((8, 2, 256, 4)).astype(np.float32)
        return Adapter({name: LowRank(B, A.T) for name, (B, A) in zip(structure.sites, factors, strict=True)})

    samples = [Sample(lambda a=a: a, {}) for a in [adapter() for _ in range(32)]]
    tracemalloc.start()
    inputs = MODELS["kernels"]().inputs(samples, structure)
    reduced = Principal.of(rows_of(inputs, np.arange(24)), 8)(rows_of(inputs, np.arange(32)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reduced["left0"].shape == (32, 8, 8, 4)
    result, bases, whole = (
        sum(array.nbytes for array in reduced.values()),
        8 * 8 * 2 * 256 * 8,
        8 * 32 * 8 * 2 * 256 * 4,
    )
    assert peak < result + bases + whole // 3  # of which the work on one matrix of 256 × 256 and its vectors takes most


def test_no_room_for_them_is_said_before_anything_is_read(stored, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10, 0, 10_000))
    read = []
    dataset = planted_dataset(20)
    samples = [sample._replace(read=lambda: read.append(1)) for sample in dataset.samples]
    with pytest.raises(PredictorError, match=r"no room.*GB free in .*found 0\.00 GB\)\n.*TMPDIR.*fewer.*ridge"):
        MODELS["kernels"]().inputs(samples, dataset.structure(range(20)))
    assert not read


def test_a_disk_that_fills_up_or_a_folder_that_is_not_there_is_said_as_well(stored, monkeypatch):
    class Full:
        def seek(self, *_):
            return 0

        def close(self):
            pass

        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(PredictorError, match="no room"):
        inputs_of(planted_dataset(20))

    def missing(**_):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", missing)
    with pytest.raises(PredictorError, match=r"cannot be stored.*No usable temporary directory"):
        inputs_of(planted_dataset(20))
