"""O-Align: an MLP on factors that are aligned with a template, one representative of each finetune.

Balanced factors X = [U √S; V √S] are an invariant up to O(k); the polar factor Q of Xᵀ T turns them towards the
template T, and X Q is an invariant of GL(r). The paper's form skips the balancing and is one of O(r) alone.

T is a mean of training adapters, per site (generalised Procrustes analysis, Gower 1975): it starts as the adapter of
median norm among those with the most directions, then five times all training adapters, each at unit norm, are
aligned with it and averaged. No seed is in it. It is saved with the weights.

Where the form is not continuous: where Xᵀ T loses rank its polar factor is not unique and the form jumps,
though ΔW does not; this happens where an update has a direction that the template does not see at all. Below full
rank no choice of one pair of factors per ΔW is continuous everywhere. Repeated singular values do no harm. Directions
below the rounding of a float32 file, σ ≤ 2⁻²³ max(out, in) σ₁, are taken for zero.

Ranks: an update of fewer directions than the template has is held whole. Of one with more, the R-dimensional
part that lies closest to T is kept and the rest of ΔW is lost (its rows of X are those orthogonal to Q).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.predict.model import FittedModel, Inputs, Invariance, RankPolicy, Sample, Split, Structure
from lorascope.predict.models._balanced import balanced_inputs
from lorascope.predict.models.mlp import MLP
from lorascope.predict.targets import Target

Factors = tuple[NDArray[Any], NDArray[Any]]
"""B [*n, S, out, k] and A [*n, S, k, in] of the sites of one shape."""

ROUNDS = 5
ROUNDING = 2.0**-23
"""The rounding unit of float32, in which most adapters are stored."""


@dataclass(frozen=True)
class OAlign(MLP):
    """Options: as ``mlp``."""

    dropout: float = 0.5
    name: ClassVar[str] = "o-align"
    formula: ClassVar[str] = "MLP(flatten (X Q)), X = [U √S; V √S], Q the polar factor of Xᵀ T, T a mean of the zoo"
    reference: ClassVar[str] = "MLP + O-Align of Learning on LoRAs (arXiv 2410.04207), on balanced factors"
    invariance: ClassVar[Invariance] = "GL(r)"
    rank_policy: ClassVar[RankPolicy] = "any"

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """``B0`` [n, S, out, k] and ``A0`` [n, S, k, in] for the first shape, and so on, balanced."""
        return balanced_inputs(samples, structure, advance)

    def fit(self, train: Split, validation: Split, target: Target, structure: Structure, *, seed: int) -> FittedModel:
        """The template from ``train``, then gradient descent, stopped on validation loss."""
        templates = mean_templates(factors_of(train.inputs), structure.rank)
        network = super().fit(
            train._replace(inputs=aligned_inputs(train.inputs, templates)),
            validation._replace(inputs=aligned_inputs(validation.inputs, templates)),
            target,
            structure,
            seed=seed,
        )
        return FittedOAlign(network, templates)

    def restore(
        self,
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
        target: Target,
        structure: Structure,
    ) -> FittedModel:
        """From the templates and the network's parameters."""
        own = {name.removeprefix("template."): X for name, X in arrays.items() if name.startswith("template.")}
        rest = {name: X for name, X in arrays.items() if not name.startswith("template.")}
        return FittedOAlign(super().restore(rest, values, target, structure), factors_of(own))


class FittedOAlign:
    """Templates, and a network on what is aligned with them."""

    def __init__(self, network: FittedModel, templates: list[Factors]) -> None:
        self._network = network
        self.templates = templates
        self.calibration = network.calibration

    def scores(self, inputs: Inputs) -> NDArray[np.float64]:
        """[n, width]."""
        return self._network.scores(aligned_inputs(inputs, self.templates))

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The network's state and ``template.B0``, ``template.A0``, …"""
        arrays, values = self._network.state()
        for i, (B, A) in enumerate(self.templates):
            arrays |= {f"template.B{i}": B, f"template.A{i}": A}
        return arrays, values


def factors_of(inputs: Mapping[str, NDArray[Any]]) -> list[Factors]:
    """The arrays B0, A0, B1, A1, … in pairs."""
    return [(inputs[f"B{i}"], inputs[f"A{i}"]) for i in range(len(inputs) // 2)]


def aligned_inputs(inputs: Inputs, templates: list[Factors]) -> Inputs:
    """``x`` [n, Σ_sites (out + in) · R]."""
    parts: list[NDArray[Any]] = []
    for factors, template in zip(factors_of(inputs), templates, strict=True):
        parts += [part.reshape(len(part), math.prod(part.shape[1:])) for part in aligned(factors, template)]
    return {"x": np.concatenate(parts, axis=1)}


def aligned(factors: Factors, template: Factors) -> Factors:
    """Balanced factors turned towards the template: (B Q, Qᵀ A), with R columns and rows whatever their rank.

    Q [k, R] maximises ⟨X Q, T⟩ among the matrices with orthonormal columns (k ≥ R) or rows (k ≤ R).

    >>> import numpy as np
    >>> template = np.ones((1, 3, 1)), np.ones((1, 1, 2))
    >>> B, A = aligned((-np.ones((5, 1, 3, 1)), -np.ones((5, 1, 1, 2))), template)
    >>> B.shape, float(B.min()), float(A.min())
    ((5, 1, 3, 1), 1.0, 1.0)
    """
    B, A = _without_rounding(*factors)
    M = B.mT @ template[0] + A @ template[1].mT
    P, _, Wh = np.linalg.svd(M, full_matrices=False)
    turn = P @ Wh
    return B @ turn, turn.mT @ A


def mean_templates(stacks: list[Factors], rank: int) -> list[Factors]:
    """A template for each site of every stack, R = min(out, in, rank) directions each."""
    counts = [(_energies(B) > 0).sum(axis=(1, 2)) for B, _ in (_without_rounding(*stack) for stack in stacks)]
    total = np.add.reduce(counts)
    norms = np.sqrt(np.add.reduce([(_energies(B) ** 2).sum(axis=(1, 2)) for B, _ in stacks]))
    full = np.flatnonzero(total == total.max())
    first = int(full[np.argsort(norms[full], kind="stable")[len(full) // 2]])
    return [_mean_template(_at_unit_norm(*stack), rank, first) for stack in stacks]


def _mean_template(factors: Factors, rank: int, first: int) -> Factors:
    B, A = factors
    R = min(B.shape[-2], A.shape[-1], rank)
    missing = max(0, R - B.shape[-1])
    template = (
        np.pad(B[first, ..., :R], [(0, 0), (0, 0), (0, missing)]),
        np.pad(A[first, ..., :R, :], [(0, 0), (0, missing), (0, 0)]),
    )
    for _ in range(ROUNDS):
        turned_B, turned_A = aligned(factors, template)
        template = turned_B.mean(axis=0), turned_A.mean(axis=0)
    return template


def _energies(B: NDArray[Any]) -> NDArray[Any]:
    """The singular values, which are the squared norms of the columns of a balanced B."""
    return (B * B).sum(axis=-2)


def _without_rounding(B: NDArray[Any], A: NDArray[Any]) -> Factors:
    S = _energies(B)
    kept = S > ROUNDING * max(B.shape[-2], A.shape[-1]) * S.max(axis=-1, keepdims=True)
    return B * kept[..., None, :], A * kept[..., :, None]


def _at_unit_norm(B: NDArray[Any], A: NDArray[Any]) -> Factors:
    """Every site of every adapter divided by √‖ΔW‖_F; a zero update stays zero."""
    unit = (_energies(B) ** 2).sum(axis=-1)[..., None, None] ** 0.25
    unit = np.where(unit > 0, unit, 1.0)
    return B / unit, A / unit


MODEL = OAlign
