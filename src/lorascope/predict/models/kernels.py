"""Kernels: our default. A sum of exact invariant kernels, weighted by leave-one-out for each target and kind of site.

    f(x) = c + Σ_g w_g Σ_i k_g(x, x_i) a_i,    a = (K + λ I)⁻¹ y

The kernels are those of the family ``lorascope.predict.kernel``: column and row spaces, energies, ΔW, spectra. Weights
are learned by the gradient of the leave-one-out error on at most ``subset`` training adapters, at three levels: one for
each kernel; one for each kernel and kind of site (its name without numbers); one for each kernel, kind and third of the
depth. The leave-one-out error on all training adapters, exact but for the statistics that centre the kernels and the
principal directions, which a left-out adapter has had its part in, chooses the level and λ. Whole groups are left out.
The weights are learned from the residuals that calibrate: these are too small by what the weights fit, which a pull
towards equal weights bounds (``kernel_levels``), and by what the directions owe to few adapters (``principal``).

Spectra tell much, and mean something else at another rank. So there are two such functions: one of all kernels, for
adapters of a rank that training had (between the least and the largest there), and one of the rank-stable kernels
alone, for the others. The rank of an adapter is the largest over its sites, of singular values above 3e-3 σ₁.

Sides of up to ``EXACT`` dimensions are taken whole, longer ones through seeded projections. What then has more than
``principal`` dimensions is reduced to the directions in which the adapters of training write and read most
(``predict.principal``): what many share tells more than what is peculiar to one.

For regressions a second function of the same kernel learns how far off the first is: intervals are in proportion.

GL-net with few channels sees P ΔW Qᵀ, linear in ΔW, which carries the noise that A started from; the column space
does not, and no function of P ΔW Qᵀ with h < out rows can tell all column spaces apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.errors import PredictorError
from lorascope.predict.explanation import Contributions
from lorascope.predict.fitted_kernels import FittedKernels, bounded, ranks_of
from lorascope.predict.kernel import KERNELS, Kernel, Tokens
from lorascope.predict.kernel_explanation import contributions_of
from lorascope.predict.kernel_learning import CONSTANT
from lorascope.predict.kernel_levels import Level, bundles_of, levels_of, subset_of_groups, weights_by_level
from lorascope.predict.kernel_machine import Comparison, Machine, Part
from lorascope.predict.leave_one_out import Blocks, Matrix, blocks_of_groups
from lorascope.predict.model import (
    CalibratedOn,
    FittedModel,
    Inputs,
    Invariance,
    RankPolicy,
    Sample,
    Split,
    Structure,
    check_options,
    stacks_of,
)
from lorascope.predict.principal import SIDES, Principal
from lorascope.predict.site_statistics import SEED, SIZE
from lorascope.predict.targets import Target
from lorascope.predict.tokens import height, sites_of, tokens_of

DEFAULT = (
    "column-space",
    "row-space",
    "column-energy",
    "row-energy",
    "delta",
    "log-spectrum",
    "spectrum",
    "norms",
    "size",
)
EXACT = 512
"""Sides of up to so many dimensions are taken whole."""
NEGLIGIBLE = 1e-5
"""A part with less than this share of all weight is dropped."""
NOISES = np.logspace(-2, 2, 17)
"""The λ that are tried on all adapters, relative to the one found on the subset."""


@dataclass(frozen=True)
class Kernels:
    """Options: ``kernels``, names of the family; ``size`` and ``seed`` of the projections; ``principal`` directions of
    each side, at most; ``subset``, how many adapters teach the weights."""

    kernels: tuple[str, ...] = DEFAULT
    size: int = SIZE
    seed: int = SEED
    principal: int = 32
    subset: int = 700
    name: ClassVar[str] = "kernels"
    formula: ClassVar[str] = "c + Σ_g w_g Σ_i k_g(x, x_i) a_i, weights and a by leave-one-out"
    reference: ClassVar[str] = "lorascope; multiple-kernel learning on invariants of ΔW"
    invariance: ClassVar[Invariance] = "GL(r)"
    rank_policy: ClassVar[RankPolicy] = "any"
    calibrated_on: ClassVar[CalibratedOn] = "left-out"

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def gives_tokens(self) -> bool:
        """Whether the inputs are the tokens by which familiarity is judged, so that they serve for both."""
        return (self.size, self.seed) == (SIZE, SEED)

    def rows(self, n: int) -> int:
        """Rows of the tokens of a side of n."""
        return min(height(self.size, n, EXACT), n)

    def _bases(self, structure: Structure) -> dict[str, tuple[int, int, int]]:
        """The shape of each basis of principal directions."""
        return {
            f"{side}{number}": (len(names), self.rows(n), self.principal)
            for number, (shape, names) in enumerate(stacks_of(structure).items())
            for side, n in zip(SIDES, shape, strict=True)
            if self.rows(n) > self.principal
        }

    def compared(self) -> list[Kernel]:
        """The kernels."""
        return [KERNELS[name]() for name in self.kernels]

    def inputs(
        self, samples: Iterable[Sample], structure: Structure, advance: Callable[[int], Any] | None = None
    ) -> Inputs:
        """The tokens of every site."""
        return tokens_of(samples, structure, size=self.size, seed=self.seed, exact=EXACT, advance=advance)

    def fit(self, train: Split, validation: Split, target: Target, structure: Structure, *, seed: int) -> FittedKernels:
        """Closed form but for the weights; ``validation`` is not needed, ``seed`` draws the subset."""
        sites = sites_of(structure)
        members = self.compared()
        principal = Principal.of(train.inputs, self.principal)
        inputs = principal(train.inputs)
        comparison = Comparison.of(members, sites, inputs)
        if not comparison.centres:
            raise PredictorError(
                "to these kernels all training adapters are alike",
                key="kernels",
                expected="kernels that see a difference",
                found=", ".join(self.kernels),
                hint="are the adapters copies of one?",
            )
        mean = train.targets.mean(axis=0)
        spread = np.maximum(train.targets.std(axis=0), 1e-6)
        Y = (train.targets - mean) / spread
        chosen = subset_of_groups(train.groups, self.subset, seed)
        levels = levels_of(sites)
        bundles = bundles_of(comparison.grams(inputs, chosen), levels[-1])
        blocks = blocks_of_groups([train.groups[i] for i in chosen])
        found = weights_by_level(bundles, Y[chosen], blocks, levels)
        stable = {member.name for member in members if member.is_rank_stable}
        kept = [bundle for bundle in bundles if bundle.parts[0].kernel in stable]
        if kept and len(kept) < len(bundles):
            found.append(weights_by_level(kept, Y[chosen], blocks, levels[:2])[-1])
        blocks = blocks_of_groups(train.groups)
        solutions = _solutions(comparison, inputs, Y, found, blocks)
        best = min(solutions, key=lambda solution: solution.error)
        at_any_rank = solutions[-1] if kept and len(kept) < len(bundles) else best
        machines: list[Machine] = []
        doubts: list[Doubt | None] = []
        for solution in (best, at_any_rank):
            a = solution.a * spread
            shift = mean + CONSTANT * a.sum(axis=0)
            doubts.append(None if target.is_classification else _doubt(solution, Y, blocks))
            if (doubt := doubts[-1]) is not None:
                a = np.concatenate([a, doubt.a], axis=1)
                shift = np.concatenate([shift, doubt.mean + CONSTANT * doubt.a.sum(axis=0)])
            machines.append(Machine.of(comparison, solution.weights, inputs, a, shift))
        own = ranks_of(inputs)
        return FittedKernels(
            principal,
            machines[0],
            machines[1],
            (int(own.min()), int(own.max())),
            (best.left_out * spread + mean, train.targets),
            best.weights,
            target.width,
            np.ones(len(Y)) if doubts[0] is None else bounded(doubts[0].left_out),
        )

    def contributions(self, fitted: FittedModel, adapter: Adapter, structure: Structure) -> Contributions:
        """By site, kernel and direction, of the function that the adapter's rank calls for."""
        kernels = cast("FittedKernels", fitted)
        inputs = self.inputs([Sample(lambda: adapter, {})], structure)
        return contributions_of(kernels.machine_for(inputs), kernels.principal(inputs), kernels.width)

    def restore(
        self,
        arrays: Mapping[str, NDArray[Any]],
        values: Mapping[str, Any],
        target: Target,
        structure: Structure,
    ) -> FittedKernels:
        """From slopes and radial coefficients."""
        members = {kernel.name: kernel for kernel in self.compared()}
        sites = sites_of(structure)

        @cache
        def columns(name: str, shape: tuple[int, int]) -> int:
            out, in_ = (min(self.rows(side), self.principal) for side in shape)
            zero = Tokens(np.zeros((1, out, 1)), np.zeros((1, 1)), np.zeros((1, in_, 1)))
            return members[name](zero).shape[1]

        return FittedKernels.restored(
            list(members.values()),
            sites,
            Principal.restored(arrays, self._bases(structure)),
            lambda name, site: columns(name, structure.sites[sites.names[site]]),
            arrays,
            values,
            target,
        )


class Spectral(NamedTuple):
    """Eigenvalues and eigenvectors of K + c 11ᵀ."""

    values: Matrix
    vectors: Matrix


class Solution(NamedTuple):
    """A level solved on all training adapters: ``error`` is the mean squared left-out residual."""

    weights: Mapping[Part, float]
    error: float
    a: Matrix
    left_out: Matrix
    spectral: Spectral


class Doubt(NamedTuple):
    """A second function of the same kernel: the logarithm of how far off the first is likely to be.

    ``a`` [n, 1] and ``mean`` [1] make it; ``left_out`` [n] are its values at the training adapters, each left out.
    """

    a: Matrix
    mean: Matrix
    left_out: Matrix


def _solutions(
    comparison: Comparison, inputs: Inputs, Y: Matrix, levels: Sequence[Level], blocks: Blocks
) -> list[Solution]:
    """Every level on all adapters, each with the noise that leaves out best."""
    kept: list[dict[Part, float]] = []
    for level in levels:
        least = NEGLIGIBLE * sum(level.weights.values())
        kept.append({part: weight for part, weight in level.weights.items() if weight > least})
    Ks = [np.full((len(Y), len(Y)), 0.0) for _ in levels]
    for part, gram in comparison.grams(inputs):
        for K, weights in zip(Ks, kept, strict=True):
            if part in weights:
                K += weights[part] * gram
    return [_solved(K, Y, weights, level.noise, blocks) for K, weights, level in zip(Ks, kept, levels, strict=True)]


def _solved(K: Matrix, Y: Matrix, weights: Mapping[Part, float], noise: float, blocks: Blocks) -> Solution:
    values, vectors = np.linalg.eigh(K + CONSTANT)
    spectral = Spectral(np.maximum(values, 0.0), vectors)
    tried = [_left_out(spectral, Y, max(noise * factor, 1e-9), blocks) for factor in NOISES]
    a, residuals = min(tried, key=lambda pair: float((pair[1] ** 2).mean()))
    return Solution(weights, float((residuals**2).mean()), a, Y - residuals, spectral)


def _left_out(spectral: Spectral, Y: Matrix, noise: float, blocks: Blocks) -> tuple[Matrix, Matrix]:
    """(a, the residuals that each group has when it is left out)."""
    vectors, shrink = spectral.vectors, 1.0 / (spectral.values + noise)
    a = vectors @ (shrink[:, None] * (vectors.T @ Y))
    residuals = a / ((vectors**2) @ shrink)[:, None]
    for block in blocks:
        V = vectors[block]
        residuals[block] = np.linalg.solve((V * shrink) @ V.T, a[block])
    return a, residuals


def _doubt(solution: Solution, Y: Matrix, blocks: Blocks) -> Doubt:
    """Learn log(|left-out residual| + a tenth of the rms) with the same K; its mean alone where that tells nothing.

    The mean, and not none: the two functions of a model share the quantile of one, so both must be in one unit.
    """
    size = np.abs(Y - solution.left_out).mean(axis=1, keepdims=True)
    logs = np.log(size + 0.1 * np.sqrt((size**2).mean()) + 1e-12)
    mean, scale = logs.mean(axis=0), float(logs.std())
    constant = Doubt(np.zeros_like(logs), mean, np.full(len(logs), mean[0]))
    if scale < 1e-9:
        return constant
    Z = (logs - mean) / scale
    mean_diagonal = float(solution.spectral.values.mean())
    tried = [_left_out(solution.spectral, Z, mean_diagonal * factor, blocks) for factor in np.logspace(-3, 3, 13)]
    a, residuals = min(tried, key=lambda pair: float((pair[1] ** 2).mean()))
    if float((residuals**2).mean()) >= 1.0:
        return constant
    return Doubt(a * scale, mean, (mean + scale * (Z - residuals))[:, 0])


MODEL = Kernels
