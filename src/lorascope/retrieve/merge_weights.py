"""The few weights with which some adapters make another: non-negative least squares on their Gram matrix.

    min_w ‖X − Σ w_i ΔW_i‖²,  w ≥ 0    ⟺    min_w wᵀ G w − 2 bᵀ w,   G_ij = ⟨ΔW_i, ΔW_j⟩,  b_i = ⟨ΔW_i, X⟩

With G = V Λ Vᵀ that is ``scipy.optimize.nnls`` of √Λ Vᵀ against Λ^(−1/2) Vᵀ b (Lawson & Hanson 1974), whose solutions
have few weights of themselves; those that add less than a share of ‖X‖ are left out, and the rest are fitted again.
Weights of both signs come from the same with −ΔW_i beside ΔW_i.
"""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import LorascopeError, MissingExtraError


def few_weights(
    gram: NDArray[np.float64],
    products: NDArray[np.float64],
    norm: float,
    *,
    smallest: float,
    is_signed: bool = False,
) -> NDArray[np.float64]:
    """The weights [n], most of them 0.

    Args:
        gram: [n, n].
        products: ⟨ΔW_i, X⟩ [n].
        norm: ‖X‖.
        smallest: |w_i| ‖ΔW_i‖ / ‖X‖ below which a weight is left out.
        is_signed: whether weights may be negative.

    Raises:
        MissingExtraError: without scipy.
        LorascopeError: where the solver gives up.

    >>> few_weights(np.eye(3), np.array([0.5, 0.0, -0.2]), 0.54, smallest=0.01)
    array([0.5, 0. , 0. ])
    >>> few_weights(np.eye(3), np.array([0.5, 0.0, -0.2]), 0.54, smallest=0.01, is_signed=True).round(12)
    array([ 0.5,  0. , -0.2])
    """
    check_scipy("explaining a merge")
    sizes = np.sqrt(np.diagonal(gram))
    weights = np.zeros(len(sizes))
    chosen = np.flatnonzero(sizes > 0)
    while len(chosen) and norm > 0:
        unit = gram[np.ix_(chosen, chosen)] / np.outer(sizes[chosen], sizes[chosen])
        own = _solved(unit, products[chosen] / sizes[chosen] / norm, is_signed=is_signed)
        is_kept = np.abs(own) >= smallest
        if is_kept.all():
            weights[chosen] = own * norm / sizes[chosen]
            break
        chosen = chosen[is_kept]
    return weights


def check_scipy(task: str) -> None:
    """See that scipy is there, before anything is read.

    Raises:
        MissingExtraError: naming the extra.
    """
    if importlib.util.find_spec("scipy") is None:
        raise MissingExtraError.of("scipy", "learn", task)


def _solved(unit: NDArray[np.float64], products: NDArray[np.float64], *, is_signed: bool) -> NDArray[np.float64]:
    from scipy.optimize import nnls

    values, vectors = np.linalg.eigh(unit)
    kept = values > len(unit) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
    root = np.sqrt(values[kept])
    matrix, target = root[:, None] * vectors[:, kept].T, (vectors[:, kept].T @ products) / root
    both = np.concatenate([matrix, -matrix], axis=1) if is_signed else matrix
    try:
        found, _ = nnls(both, target, maxiter=max(1000, 20 * both.shape[1]))
    except RuntimeError as error:
        raise LorascopeError("the weights of the merge were not found", found=str(error)) from error
    return found[: len(unit)] - found[len(unit) :] if is_signed else found
