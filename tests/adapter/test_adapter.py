"""``Adapter`` as an immutable mapping."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from lorascope.adapter import Adapter, LowRank, Provenance
from lorascope.errors import AdapterError
from lorascope.testing import CONSTANT, adapters


def one(**options):
    return LowRank(np.ones((3, 1)), np.ones((1, 2)), **options)


@given(adapter=adapters())
def test_the_norm_is_that_of_all_delta_weights(adapter):
    dense = np.sqrt(sum(np.sum(update.delta_weight(np.float64) ** 2) for update in adapter.values()))
    sizes = [abs(u.scale) * np.linalg.norm(u.B) * np.linalg.norm(u.A) for u in adapter.values()]
    assert abs(adapter.norm() - dense) <= CONSTANT * np.finfo(np.float64).eps * sum(sizes)


def test_it_is_a_mapping_that_cannot_change():
    sites = {"b": one(), "a": one()}
    adapter = Adapter(sites, leftovers={"head": np.ones(2)}, original={"x": np.ones(2)})
    sites["c"] = one()
    assert list(adapter) == ["b", "a"] and len(adapter) == 2 and "a" in adapter
    for mapping in (adapter.sites, adapter.leftovers, adapter.original):
        with pytest.raises(TypeError):
            mapping["z"] = one()
    assert repr(adapter) == "Adapter(memory lora, 2 sites, ranks [1])"
    with pytest.raises(KeyError):
        adapter["z"]


def test_an_edit_drops_the_original_tensors_and_keeps_the_rest():
    adapter = Adapter({"a": one()}, Provenance(format="peft"), {"head": np.ones(2)}, original={"x": np.ones(2)})
    edited = adapter.with_sites({"a": one(scale=2.0)})
    assert edited.original is None and adapter.original is not None
    assert edited.provenance.format == "peft" and list(edited.leftovers) == ["head"]
    assert edited.norm() == pytest.approx(2 * adapter.norm())


def test_an_error_in_a_site_names_file_and_tensor():
    bad = LowRank(np.full((3, 1), np.nan), np.ones((1, 2)), keys=("q.B", "q.A"))
    adapter = Adapter({"q": bad}, Provenance(path=Path("x.safetensors")))
    with pytest.raises(AdapterError, match=r"x\.safetensors: q: non-finite value in q\.B"):
        adapter.norm()


def test_the_empty_adapter_is_zero():
    assert Adapter({}).norm() == 0.0
