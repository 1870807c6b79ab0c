"""Shape checks, Hypothesis profiles and the two array libraries, for all tests."""

import os
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

# Before anything imports these packages: their jaxtyping annotations are checked in tests only.
jaxtyping.install_import_hook(["lorascope.symmetry", "lorascope.features", "lorascope.nn"], "beartype.beartype")

import torch

torch.set_num_threads(1)

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.register_profile("full", settings.get_profile("default"), derandomize=False, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def _to_numpy(array: Any) -> Any:
    return array


@pytest.fixture(scope="session", params=["numpy", "torch"])
def library(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Turns a NumPy array into an array of the library under test."""
    return _to_numpy if request.param == "numpy" else torch.as_tensor
