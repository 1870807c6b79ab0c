"""One layer, many adapters, one batch: the same as each adapter by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import AdapterError, LorascopeError
from lorascope.serve import BatchedLinear
from lorascope.serve import batched as module

OUT, IN = 7, 5


def updates() -> list[LowRank | None]:
    """Ranks 1, 3, 2 and 3 with scales, one with a bias, and an adapter that has nothing here."""
    random = np.random.default_rng(0)

    def one(rank: int, **options: Any) -> LowRank:
        return LowRank(random.standard_normal((OUT, rank)), random.standard_normal((rank, IN)), **options)

    return [one(1, scale=2.0), one(3), None, one(2, scale=-0.5), one(3, bias=random.standard_normal(OUT), scale=0.5)]


def alone(linear: nn.Linear, x: torch.Tensor, update: LowRank | None) -> torch.Tensor:
    """The layer with one adapter folded into its weight."""
    if update is None:
        return linear(x)
    weight = linear.weight + torch.from_numpy(update.delta_weight(np.float64))
    delta = update.delta_bias(np.float64)
    return nn.functional.linear(x, weight, linear.bias if delta is None else linear.bias + torch.from_numpy(delta))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
@pytest.mark.parametrize("gathered", [1, 1 << 24])
def test_each_row_is_what_its_adapter_alone_gives(
    shape: tuple[int, ...], gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GATHERED", gathered)  # 1: a row at a time
    torch.manual_seed(0)
    linear = nn.Linear(IN, OUT).double()
    adapters = [Adapter({} if update is None else {"q": update}) for update in updates()]
    layer = BatchedLinear.of(linear, adapters, "q")
    index = torch.tensor([4, -1, 0, 1, 1, 2, 3, 4, -1, 0])
    x = torch.randn(len(index), *shape, IN, dtype=torch.float64)
    y = layer(x, index)
    assert y.shape == (len(index), *shape, OUT)
    for row, number in enumerate(index.tolist()):
        expected = alone(linear, x[row], None if number < 0 else updates()[number])
        torch.testing.assert_close(y[row], expected.detach(), rtol=1e-12, atol=1e-12)


def test_none_is_padded_and_memory_is_that_of_the_factors() -> None:
    layer = BatchedLinear(torch.zeros(OUT, IN), None, updates()[:4])
    assert layer.ranks == (1, 2, 3) and layer.count == 4
    factors = 4 * (1 + 2 + 3) * (OUT + IN)
    assert factors <= layer.nbytes <= factors + 2 * 8 * 5
    assert layer(torch.ones(0, IN), torch.zeros(0, dtype=torch.long)).shape == (0, OUT)
    assert torch.equal(
        BatchedLinear(torch.eye(3), None, [])(torch.ones(2, 3), torch.tensor([-1, -1])), torch.ones(2, 3)
    )


def test_it_follows_the_dtype_of_the_base() -> None:
    layer = BatchedLinear(torch.zeros(OUT, IN, dtype=torch.bfloat16), None, updates())
    assert layer(torch.ones(1, IN, dtype=torch.bfloat16), torch.tensor([1])).dtype == torch.bfloat16


def test_what_does_not_fit_is_refused() -> None:
    layer = BatchedLinear(torch.zeros(OUT, IN), None, updates())
    x = torch.ones(2, IN)
    for index in (torch.tensor([0]), torch.tensor([0.0, 1.0]), torch.tensor([True, False]), torch.tensor([[0], [1]])):
        with pytest.raises(LorascopeError, match="not one adapter for each row"):
            layer(x, index)
    for index in (torch.tensor([0, 5]), torch.tensor([0, -2])):
        with pytest.raises(LorascopeError, match="no such adapter"):
            layer(x, index)
    with pytest.raises(AdapterError, match=r"adapter 0: .*does not fit"):
        BatchedLinear(torch.zeros(OUT, IN + 1), None, updates())
    nan = LowRank(np.full((OUT, 1), np.nan), np.ones((1, IN)))
    with pytest.raises(AdapterError, match=r"adapter 1: .*non-finite"):
        BatchedLinear(torch.zeros(OUT, IN), None, [None, nan])
    embedding = LowRank(np.ones((OUT, 1)), np.ones((1, IN)), layer="embedding", is_transposed=True)
    with pytest.raises(AdapterError, match="does not fit"):
        BatchedLinear(torch.zeros(OUT, IN), None, [embedding])
