"""``BatchedLinear``: one linear layer, many adapters, a batch whose rows each use their own.

    y_b = W x_b + bias + B_i (A_i x_b)        i = index[b], −1 for the base alone

Adapters of one rank lie in one stack, so that none is padded: A [n, rank, in], B [n, out, rank], the scale in B. The
rows that use a rank are gathered with their factors and multiplied in two batched products; ΔW is never formed. At most
``GATHERED`` numbers of factors are gathered at a time, whatever the batch.

Source: the gathered product is BGMV of Chen et al. (2023), Punica, arXiv 2310.18547, section 4, without its kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorascope.adapter import Adapter, Update
from lorascope.errors import AdapterError, LorascopeError, MissingExtraError

try:
    import torch
    from torch import nn
except ImportError as error:
    raise MissingExtraError.of("torch", "learn", "BatchedLinear") from error

GATHERED = 1 << 24
"""Numbers of factors gathered at a time: 64 MiB in float32."""


class BatchedLinear(nn.Module):
    """A linear layer with many adapters; for inference, no gradient reaches the adapters.

    Args:
        weight: [out, in], of the base; kept, not copied.
        bias: [out] or None.
        updates: one for each adapter, None where it has nothing at this layer.

    Raises:
        AdapterError: where an update is not of a linear layer, does not fit the weight, or needs the base weight.

    >>> from lorascope.adapter import LowRank
    >>> layer = BatchedLinear(torch.zeros(3, 2), None, [LowRank(np.ones((3, 1)), np.ones((1, 2))), None])
    >>> layer(torch.ones(3, 2), torch.tensor([0, 1, -1]))[:, 0].tolist()
    [2.0, 0.0, 0.0]
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    biases: torch.Tensor | None
    groups: torch.Tensor
    places: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, updates: Sequence[Update | None]) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        kept = [_checked(update, weight, number) for number, update in enumerate(updates)]
        ranks = sorted({update.rank for update in kept if update is not None and update.rank})
        self.ranks = tuple(ranks)
        groups, places = np.full(len(kept) + 1, -1), np.zeros(len(kept) + 1, np.int64)  # the last one is index −1
        for group, rank in enumerate(ranks):
            members = [number for number, update in enumerate(kept) if update is not None and update.rank == rank]
            groups[members], places[members] = group, np.arange(len(members))
            found = [_factors(kept[number], number) for number in members]
            self.register_buffer(f"B{rank}", _stacked([B for B, _ in found], weight))
            self.register_buffer(f"A{rank}", _stacked([A for _, A in found], weight))
        self.register_buffer("groups", torch.as_tensor(groups, device=weight.device))
        self.register_buffer("places", torch.as_tensor(places, device=weight.device))
        deltas = [None if update is None else update.delta_bias(np.float64) for update in kept]
        has_biases = any(delta is not None for delta in deltas)
        rows = [np.zeros(weight.shape[0]) if delta is None else delta for delta in (*deltas, None)]
        self.register_buffer("biases", _stacked(rows, weight) if has_biases else None)

    @classmethod
    def of(cls, linear: nn.Linear, adapters: Sequence[Adapter], site: str) -> BatchedLinear:
        """The layer of a model with what each adapter has at the site of that name."""
        return cls(linear.weight, linear.bias, [adapter.get(site) for adapter in adapters])

    @property
    def count(self) -> int:
        """How many adapters there are."""
        return len(self.groups) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the adapters; a call gathers up to ``GATHERED`` numbers more, and one result."""
        own = {name: one for name, one in self.named_buffers() if name not in ("weight", "bias")}
        return sum(one.numel() * one.element_size() for one in own.values())

    @torch.no_grad()
    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """y [batch, …, out] of x [batch, …, in] and the number of an adapter for each row, [batch], −1 for none.

        Raises:
            LorascopeError: where the shapes do not fit, or there is no such adapter.
        """
        if index.shape != x.shape[:1] or index.is_floating_point() or index.dtype == torch.bool:
            raise LorascopeError(
                "not one adapter for each row", expected=f"whole numbers [{x.shape[0]}]", found=list(index.shape)
            )
        if index.numel() and not (-1 <= int(index.min()) and int(index.max()) < self.count):
            raise LorascopeError(
                "no such adapter", expected=f"−1 to {self.count - 1}", found=f"{int(index.min())} to {int(index.max())}"
            )
        y = nn.functional.linear(x, self.weight, self.bias)
        index = index.long()
        groups, places = self.groups[index], self.places[index]  # −1 is the last
        for group, rank in enumerate(self.ranks):
            rows = torch.nonzero(groups == group).squeeze(1)
            B, A = getattr(self, f"B{rank}"), getattr(self, f"A{rank}")
            step = max(1, GATHERED // (rank * (B.shape[1] + A.shape[2])))
            for some in rows.split(step) if len(rows) else ():
                own = places[some]
                tokens = x[some].reshape(len(some), -1, x.shape[-1])
                made = (tokens @ A[own].mT) @ B[own].mT
                y[some] += made.reshape(len(some), *y.shape[1:])
        if self.biases is not None:
            y += self.biases[index].reshape(len(index), *(1,) * (y.ndim - 2), y.shape[-1])
        return y


def _checked(update: Update | None, weight: torch.Tensor, number: int) -> Update | None:
    if update is None:
        return None
    if update.layer != "linear" or update.kernel or update.shape != tuple(weight.shape):
        raise AdapterError(
            "the update does not fit the layer",
            file=f"adapter {number}",
            expected=f"a linear one of shape {list(weight.shape)}",
            found=f"{update.layer} {list(update.shape)}",
        )
    return update


def _factors(update: Update | None, number: int) -> tuple[Any, Any]:
    try:
        B, A, scale = update.factors(np.float64)  # type: ignore[union-attr]  # those without an update are in no group
    except AdapterError as error:
        error.file = error.file or f"adapter {number}"
        raise
    return B * scale, A


def _stacked(arrays: Sequence[Any], like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(np.stack(arrays)).to(device=like.device, dtype=like.dtype)
