"""Merge methods entry by entry on dense matrices in float64: slow, and near the words of the papers."""

from __future__ import annotations

from typing import Any

import numpy as np

from lorascope.adapter import Adapter, LowRank


def adapters_of(shape: tuple[int, int], ranks: tuple[int, ...], seed: int = 0) -> list[Adapter]:
    """One site ``q`` each, scales that are not 1, float64."""
    random = np.random.default_rng(seed)
    return [
        Adapter(
            {
                "q": LowRank(
                    random.standard_normal((shape[0], rank)), random.standard_normal((rank, shape[1])), 0.5 + rank / 8
                )
            }
        )
        for rank in ranks
    ]


def deltas_of(adapters: list[Adapter], site: str = "q") -> list[Any]:
    return [adapter[site].delta_weight(np.float64) for adapter in adapters]


def trimmed(delta: Any, density: float) -> Any:
    """The ⌊density · size⌋ entries of largest magnitude, and those as large as the last of them."""
    flat = sorted((abs(value) for value in delta.ravel().tolist()), reverse=True)
    least = flat[max(1, int(density * len(flat))) - 1]
    return np.array([[value if abs(value) >= least else 0.0 for value in row] for row in delta.tolist()])


def elected_mean(deltas: list[Any], weights: list[float]) -> Any:
    """Per entry: the sign with more weighted mass, and the weighted mean of the entries that have it."""
    result = np.zeros_like(deltas[0])
    for place in np.ndindex(*result.shape):
        values = [weight * float(delta[place]) for weight, delta in zip(weights, deltas, strict=True)]
        sign = np.sign(sum(values))
        agreeing = [
            (value, abs(w)) for value, w in zip(values, weights, strict=True) if sign and np.sign(value) == sign
        ]
        if agreeing:
            result[place] = sum(value for value, _ in agreeing) / sum(weight for _, weight in agreeing)
    return result


def ties(deltas: list[Any], weights: list[float], density: float) -> Any:
    return elected_mean([trimmed(delta, density) for delta in deltas], weights)


def polar(matrix: Any) -> Any:
    """The nearest matrix with orthonormal columns."""
    P, _, Qh = np.linalg.svd(matrix, full_matrices=False)
    return P @ Qh
