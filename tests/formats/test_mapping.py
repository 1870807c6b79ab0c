"""Tensors under names that no format knows, with a mapping given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from lorascope.errors import AdapterError
from lorascope.formats.mapping import from_tensors

RNG = np.random.default_rng(0)
B, A = RNG.standard_normal((5, 2)), RNG.standard_normal((2, 4))
PAIRS: dict[str, Any] = {"x.q.up": B, "x.q.down": A, "x.k.up": B[:, :1], "x.k.down": A[:1]}
SHORT = {"{site}.up": "B", "{site}.down": "A"}


def test_the_short_form_and_the_long_one_say_the_same() -> None:
    tensors = PAIRS | {"x.q.alpha": np.array(4.0), "step": np.zeros(1)}
    short = from_tensors(tensors, SHORT | {"{site}.alpha": "alpha"})
    long = from_tensors(tensors, {"{site}": {"A": "{site}.down", "B": "{site}.up", "alpha": "{site}.alpha"}})
    for adapter in (short, long):
        assert {site: update.scale for site, update in adapter.items()} == {"x.q": 2.0, "x.k": 1.0}
        assert list(adapter.leftovers) == ["step"]
        assert [(note.code, note.site) for note in adapter.notes] == [("scale-unknown", "x.k"), ("unknown-keys", None)]
        np.testing.assert_allclose(adapter["x.q"].delta_weight(np.float64), 2 * B @ A)


def test_sites_spelt_out_and_named_anew() -> None:
    tensors = {"w0": B, "w1": A, "a": np.array(6.0), "y.k.up": B, "y.k.down": A}
    mapping = {
        "layers.0.q": {"B": "w0", "A": "w1", "alpha": "a"},
        "model.{site}": {"B": "y.{site}.up", "A": "y.{site}.down", "scale": -0.5},
    }
    adapter = from_tensors(tensors, mapping)
    assert {site: update.scale for site, update in adapter.items()} == {"layers.0.q": 3.0, "model.k": -0.5}
    assert adapter.notes == () and adapter["layers.0.q"].alpha == 6.0


def test_layouts() -> None:
    fields = {"B": "b", "A": "a", "scale": 1}
    turned = from_tensors({"b": B.T, "a": A.T}, {"q": fields | {"transpose_factors": True}})["q"]
    np.testing.assert_allclose(turned.delta_weight(np.float64), B @ A)
    stored = from_tensors({"b": B, "a": A}, {"q": fields | {"is_transposed": True}})["q"]
    np.testing.assert_allclose(stored.delta_weight(np.float64), (B @ A).T)
    embedding = from_tensors({"b": B, "a": A}, {"q": fields | {"is_embedding": True}})["q"]
    assert (embedding.layer, embedding.base_shape) == ("embedding", (4, 5))
    down = RNG.standard_normal((2, 3, 2, 2))
    convolution = from_tensors({"b": B.reshape(5, 2, 1, 1), "a": down}, {"q": fields})["q"]
    assert (convolution.layer, convolution.base_shape) == ("conv2d", (5, 3, 2, 2))


def test_a_bias_and_a_magnitude() -> None:
    tensors = {"b": B, "a": A, "c": np.ones(5), "m": np.arange(1.0, 6.0)}
    fields = {"B": "b", "A": "a", "scale": 2.0}
    delta = from_tensors(tensors, {"q": fields | {"bias": "c"}})["q"].delta_bias(np.float64)
    assert delta is not None
    np.testing.assert_array_equal(delta, np.full(5, 2.0))
    dora = from_tensors(tensors, {"q": fields | {"magnitude": "m"}})
    base = RNG.standard_normal((5, 4))
    moved = base + dora["q"].delta_weight(np.float64, base=base)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), tensors["m"])
    assert dora.provenance.kind == "dora"


def test_files_and_tensors_of_pytorch(tmp_path: Path) -> None:
    safetensors.numpy.save_file(PAIRS, tmp_path / "x.safetensors", {"a": "b"})
    np.savez(tmp_path / "x.npz", **PAIRS)
    for name in ("x.safetensors", "x.npz"):
        adapter = from_tensors(tmp_path / name, SHORT)
        assert sorted(adapter) == ["x.k", "x.q"] and adapter.provenance.path == tmp_path / name

    torch: Any = pytest.importorskip("torch")
    pairs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in PAIRS.items()}
    torch.save(pairs, tmp_path / "x.pt")
    half = {name: value.to(torch.bfloat16) for name, value in pairs.items()}
    for tensors in (pairs, tmp_path / "x.pt", half):
        update = from_tensors(tensors, SHORT)["x.q"]
        tolerance = 0.1 if tensors is half else 1e-12
        np.testing.assert_allclose(update.delta_weight(np.float64), B @ A, atol=tolerance)
    assert from_tensors(half, SHORT)["x.q"].stored["A"].dtype == ml_dtypes.bfloat16
    with pytest.raises(AdapterError, match="no dense array"):
        from_tensors({"x.up": torch.eye(2).to_sparse()}, SHORT)


@pytest.mark.parametrize(
    ("mapping", "match"),
    [
        ({}, "mapping is empty"),
        ([], "object with names"),
        ({1: "B"}, "object with names"),
        ({"{site}.up": "C"}, "no such role"),
        ({"{site}.up": "B"}, "which tensor is A"),
        (SHORT | {"{site}.x": "A"}, "two patterns"),
        ({"up": "B", "down": "A"}, "must occur once"),
        ({"{site}.{site}.up": "B", "{site}.down": "A"}, "must occur once"),
        ({"q": {"B": "{site}.up", "A": "x.q.down"}}, "must occur once"),
        ({"{site}.up": 1}, "neither a role nor fields"),
        ({"q": {"B": "x.q.up", "A": 3}}, "A must be the name"),
        ({"q": {"B": "x.q.up", "A": "x.q.down", "bais": "x"}}, "no such field"),
        ({"q": {"B": "x.q.up", "A": "x.q.down", "scale": 1, "alpha": 2}}, "one of them"),
        ({"q": {"B": "x.q.up", "A": "x.q.down", "scale": "1"}}, "scale must be"),
        ({"q": {"B": "x.q.up", "A": "x.q.down", "scale": 10**400}}, "scale must be"),
        ({"q": {"B": "x.q.up", "A": "x.q.down", "alpha": True}}, "alpha must be"),
        ({"q": {"B": "x.q.up", "A": "x.q.down", "alpha": "x.q.up"}}, "alpha is not one number"),
        ({"q": {"B": "x.q.up", "A": "x.q.down", "is_transposed": 1}}, "true or false"),
        ({"q": {"B": "x.q.up", "A": "gone"}}, "tensor A of the mapping is missing"),
        ({"q": {"B": "x.q.up", "A": "x.q.down", "bias": "gone"}}, "tensor bias of the mapping is missing"),
        ({"q": {"B": "x.q.down", "A": "x.q.up"}}, "do not make a product"),
        ({"{site}.lora_up": "B", "{site}.lora_down": "A"}, "no tensor fits"),
        ({"{site}.up": "B", "{site}.q.down": "A"}, "tensor A of the mapping is missing"),
        (SHORT | {"x.q": {"B": "x.q.up", "A": "x.q.down"}}, "two entries"),
        (SHORT | {"y": {"B": "x.q.up", "A": "x.q.down"}}, "one tensor fits two sites"),
    ],
)
def test_a_wrong_mapping_gives_one_error(mapping: Any, match: str) -> None:
    with pytest.raises(AdapterError, match=match):
        from_tensors(PAIRS, mapping)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({}, "no tensor fits"),
        ({1: B}, "object with names"),
        ({"x.up": [[1.0]]}, "no array"),
        ({"x.up": B.astype(int), "x.down": A}, "floating-point"),
        ({"x.up": np.array(["a"]), "x.down": A}, "floating-point"),
    ],
)
def test_wrong_tensors_give_one_error(tensors: Any, match: str) -> None:
    with pytest.raises(AdapterError, match=match):
        from_tensors(tensors, SHORT)


def test_an_error_names_the_file(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"x.up": B}, tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match=r"x\.safetensors: x: the tensor A"):
        from_tensors(str(tmp_path / "x.safetensors"), SHORT)
