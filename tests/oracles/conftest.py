"""What the tests against other programs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def in_double() -> Iterator[None]:
    """Layers that PyTorch makes are in float64."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
