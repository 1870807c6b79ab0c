"""Searches among many sketches."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest

from lorascope.errors import LorascopeError, MissingExtraError
from lorascope.retrieve import Vectors


def sketches(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 256)).astype(np.float32)


def test_exact_is_exact() -> None:
    some = sketches(5000)
    query = some[77] + 0.1
    truth = np.argsort(np.linalg.norm(some.astype(np.float64) - query, axis=1))[:10]
    assert Vectors.exact(some).nearest(query, 10).tolist() == truth.tolist()
    assert len(Vectors.exact(some[:3]).nearest(query, 10)) == 3
    assert len(Vectors.exact(some[:0]).nearest(query, 10)) == 0
    with pytest.raises(LorascopeError, match="so many"):
        Vectors.exact(some).nearest(query, 0)


def test_without_faiss_the_extra_is_named(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"lorascope\[scale\]"):
        Vectors.compressed(sketches(2000))
    with pytest.raises(LorascopeError, match="too few"):
        Vectors.compressed(sketches(10))


@pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason="faiss was not searched with: it is not installed"
)
def test_compressed_finds_what_is_near() -> None:
    some = sketches(5000)
    vectors = Vectors.compressed(some)
    found = [vectors.nearest(some[k] + 0.01, 1)[0] == k for k in range(0, 5000, 100)]
    assert np.mean(found) > 0.9
