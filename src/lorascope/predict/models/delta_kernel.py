"""Delta kernel: an exact kernel machine on ⟨ΔW_i, ΔW_j⟩, the Dense model of Learning on LoRAs without its room.

    direction    mean over sites s of cos(ΔW_i, ΔW_j) = ⟨ΔW_i, ΔW_j⟩ / (‖ΔW_i‖_ε ‖ΔW_j‖_ε),   ‖ΔW‖_ε = √(‖ΔW‖_F² + ε²)
    magnitude    exp(−½ mean over s of (log ‖ΔW_i‖ − log ‖ΔW_j‖)²)

A linear model of all entries of every ΔW / ‖ΔW‖ is kernel ridge regression on ``direction``, which never needs ΔW: with
thin SVDs, ⟨ΔW_i, ΔW_j⟩ = Σ_ab (S_i U_iᵀU_j S_j)_ab (V_iᵀV_j)_ab, two matrix products for a whole block of pairs. The
penalty and the weights of the two kernels are chosen by closed-form leave-one-out.

Cost per site: 2 n² k² (out + in) operations to fit on n adapters of rank k, 2 n k² (out + in) for a prediction. A
fitted model keeps the factors of its training adapters in float32, to which they are rounded before anything is
fitted: 4 · k · (out + in + 1) bytes per site and adapter. At rank 4 and 18 sites of 64 × 64 that is 37 kB per adapter,
at rank 16 and 64 sites of 4096 × 4096 34 MB: a model for small zoos or small adapters; the sketches of ``ridge`` have
no such limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.features.invariants.log_norm import log_norm
from lorascope.features.side import FLOOR
from lorascope.predict.leave_one_out import KernelSolution, fit_kernel_ridge
from lorascope.predict.model import (
    CalibratedOn,
    Inputs,
    Invariance,
    RankPolicy,
    Sample,
    Split,
    Structure,
    check_options,
    stacks_of,
)
from lorascope.predict.models._singular import singular_inputs
from lorascope.predict.targets import Target
from lorascope.symmetry import SiteStack, stack_adapters

BLOCK_NUMBERS = 4_000_000
"""How many entries a product of a block of adapters with all others may have: 32 MB."""


@dataclass(frozen=True)
class DeltaKernel:
    """No options: everything is chosen by leave-one-out."""

    name: ClassVar[str] = "delta-kernel"
    formula: ClassVar[str] = "Σ_i α_i (w₁ Σ_s cos(ΔW_s, ΔW_is) + w₂ exp(−½ mean_s (log ‖ΔW_s‖ − log ‖ΔW_is‖)²))"
    reference: ClassVar[str] = "the Dense model of Learning on LoRAs (arXiv 2410.04207), as an exact kernel machine"
    invariance: ClassVar[Invariance] = "GL(r)"
    rank_policy: ClassVar[RankPolicy] = "any"
    calibrated_on: ClassVar[CalibratedOn] = "left-out"

    def __post_init__(self) -> None:
        check_options(self)

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """The thin SVD of every site, as ``singular_inputs`` gives it."""
        return singular_inputs(samples, structure, advance, stacks=_stacks)

    def fit(
        self, train: Split, validation: Split, target: Target, structure: Structure, *, seed: int
    ) -> FittedDeltaKernel:
        """Closed form: ``validation`` and ``seed`` are not needed."""
        largest = 1e-5 * np.finfo(np.float32).max  # a σ beyond is as good as this one
        anchors = {name: np.minimum(array, largest).astype(np.float32) for name, array in train.inputs.items()}
        solution = fit_kernel_ridge(delta_kernels(anchors, anchors), train.targets, sample_groups=train.groups)
        return FittedDeltaKernel(*_sparse(solution, anchors), train.targets)

    def restore(
        self,
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
        target: Target,
        structure: Structure,
    ) -> FittedDeltaKernel:
        """From the dual weights and the training factors.

        Raises:
            ValueError: where an array is none of them.
        """
        known = {f"{part}{i}" for i in range(len(stacks_of(structure))) for part in "USV"} | {"dual", "intercept"}
        if unknown := sorted(arrays.keys() - known):
            raise ValueError(f"arrays that belong to no part: {', '.join(unknown[:3])}")
        none = np.zeros((0, target.width))
        solution = KernelSolution(arrays["dual"], arrays["intercept"], values["weights"], values["penalty"], none)
        anchors = {name: array for name, array in arrays.items() if name not in ("dual", "intercept")}
        return FittedDeltaKernel(solution, anchors, none)


def _stacks(block: Sequence[Adapter], structure: Structure) -> list[SiteStack]:
    """In float64, where updates may be as large as that can hold."""
    return stack_adapters(block, sites=list(structure.sites))


def delta_kernels(one: Inputs, other: Inputs) -> dict[str, NDArray[np.float64]]:
    """``direction`` and ``magnitude`` between m and n adapters, [m, n] each.

    Arguments as ``singular_inputs`` gives them; ranks may differ.

    >>> U = np.full((1, 1, 4, 1), 0.5)
    >>> one = {"U0": U, "S0": np.ones((1, 1, 1)), "V0": U}
    >>> kernels = delta_kernels(one, {**one, "V0": -U})
    >>> {name: K.round(9).tolist() for name, K in kernels.items()}
    {'direction': [[-1.0]], 'magnitude': [[1.0]]}
    """
    direction, distance = (np.zeros((len(one["S0"]), len(other["S0"]))) for _ in range(2))
    sites = 0
    for i in range(len(one) // 3):
        for s in range(one[f"S{i}"].shape[1]):
            left, right = (
                tuple(np.asarray(x[f"{name}{i}"][:, s], np.float64) for name in ("U", "S", "V")) for x in (one, other)
            )
            direction += _cosine(*left, *right)
            distance += (log_norm(left[1]) - log_norm(right[1])[:, 0]) ** 2
            sites += 1
    return {"direction": direction / sites, "magnitude": np.exp(-0.5 * distance / sites)}


def _cosine(U1: Any, S1: Any, V1: Any, U2: Any, S2: Any, V2: Any) -> NDArray[np.float64]:
    """[m, n] at one site, from U [·, out, k], S [·, k], V [·, in, k]."""
    m, n, k1, k2 = len(S1), len(S2), S1.shape[1], S2.shape[1]
    left = _rows(U1 * _relative(S1)[:, None, :]), _rows(V1)
    right = _rows(U2 * _relative(S2)[:, None, :]).T, _rows(V2).T
    result = np.empty((m, n))
    step = max(1, BLOCK_NUMBERS // max(1, n * k1 * k2))
    for start in range(0, m, step):
        rows = slice(start * k1, (start + step) * k1)
        products = (left[0][rows] @ right[0]) * (left[1][rows] @ right[1])
        count = min(step, m - start)
        result[start : start + count] = products.reshape(count, k1, n, k2).sum(axis=(1, 3))
    return result


def _relative(S: NDArray[np.float64]) -> NDArray[np.float64]:
    """σ / √(‖ΔW‖² + ε²)."""
    return S / np.sqrt((S * S).sum(axis=-1, keepdims=True) + FLOOR * FLOOR)


def _rows(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, d, k] as [n · k, d]."""
    return np.ascontiguousarray(np.swapaxes(vectors, 1, 2)).reshape(-1, vectors.shape[1])


def _sparse(solution: KernelSolution, anchors: Inputs) -> tuple[KernelSolution, Inputs]:
    """Without the training adapters whose dual weights are all zero: they say nothing."""
    kept = np.abs(solution.dual).max(axis=1) > 0
    return replace(solution, dual=solution.dual[kept]), {name: array[kept] for name, array in anchors.items()}


class FittedDeltaKernel:
    """Dual weights, the training adapters that have one, and leave-one-out scores for calibration."""

    def __init__(self, solution: KernelSolution, anchors: Inputs, targets: NDArray[np.float64]) -> None:
        self.solution = solution
        self.anchors = anchors
        self.calibration = (solution.left_out, targets)

    def scores(self, inputs: Inputs) -> NDArray[np.float64]:
        """[n, width]."""
        return self.solution.predict(delta_kernels(inputs, self.anchors))

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Dual weights and factors; the weights of the kernels and the penalty."""
        arrays = {"dual": self.solution.dual, "intercept": self.solution.intercept, **self.anchors}
        return arrays, {"weights": dict(self.solution.weights), "penalty": self.solution.penalty}


MODEL = DeltaKernel
