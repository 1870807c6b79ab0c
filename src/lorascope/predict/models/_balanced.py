"""The balanced factors (U √S, √S Vᵀ) of every site as inputs of a model: one array of B and one of A per shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.blocks import blocks_of, network_stacks
from lorascope.predict.model import Inputs, Sample, Structure
from lorascope.symmetry import balance, pad_rank

Change = Callable[[tuple[str, ...], Any, Any], tuple[Any, Any]]
"""(names of the sites, B, A) → (B, A), for the sites of one shape of a block of adapters."""


def balanced_inputs(
    samples: Iterable[Sample],
    structure: Structure,
    advance: Callable[[int], Any] | None = None,
    *,
    change: Change | None = None,
) -> Inputs:
    """``B0`` [n, S, out, k] and ``A0`` [n, S, k, in] for the first shape, and so on; k the largest rank.

    The scale is in them: B · A is ΔW. ``change`` is made to the factors of each block before they are kept.
    """
    parts: dict[str, list[NDArray[Any]]] = {}
    for block in blocks_of(samples, structure):
        for i, stack in enumerate(network_stacks(block, structure)):
            B, A = balance(stack.B, stack.A)
            if change is not None:
                B, A = change(stack.names, B, A)
            parts.setdefault(f"B{i}", []).append(B)
            parts.setdefault(f"A{i}", []).append(A)
        if advance is not None:
            advance(len(block))
    return _joined(parts)


def _joined(parts: Mapping[str, list[NDArray[Any]]]) -> Inputs:
    """The blocks of every stack in one array, ranks padded to the largest."""
    joined: Inputs = {}
    for i in range(len(parts) // 2):
        Bs, As = parts[f"B{i}"], parts[f"A{i}"]
        rank = max(B.shape[-1] for B in Bs)
        padded = [pad_rank(B, A, rank) for B, A in zip(Bs, As, strict=True)]
        joined[f"B{i}"] = np.concatenate([B for B, _ in padded])
        joined[f"A{i}"] = np.concatenate([A for _, A in padded])
    return joined
