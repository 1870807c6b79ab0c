"""Kernels: our default. A sum of exact invariant kernels, weighted by leave-one-out for each target and kind of site.

    f(x) = c + Σ_g w_g Σ_i k_g(x, x_i) a_i,    a = (K + λ I)⁻¹ y, or that of logistic regression for classes

The kernels are those of the family ``lorascope.predict.kernel``: column and row spaces, energies, ΔW, spectra. Weights
are learned by the gradient of the leave-one-out error on at most ``subset`` training adapters, at three levels: one for
each kernel; one for each kernel and kind of site (its name without numbers); one for each kernel, kind and third of the
depth. The leave-one-out error on all training adapters, exact but for the statistics that centre the kernels and the
principal directions, which a left-out adapter has had its part in, chooses the level and λ. Whole groups are left out.
What calibrates is left out as well, and where all adapters taught the weights, of solutions whose weights, centres and
directions other adapters taught (``kernel_solution``).

Spectra tell much, and mean something else at another rank. So there are two such functions: one of all kernels, for
adapters of a rank that training had (between the least and the largest there), and one of the rank-stable kernels
alone, for the others. The rank of an adapter is the largest over its sites, of singular values above 3e-3 σ₁.

Sides of up to ``EXACT`` dimensions are taken whole, longer ones through seeded projections. What then has more than
``principal`` dimensions is reduced to the directions in which the adapters of training write and read most
(``predict.principal``): what many share tells more than what is peculiar to one.

For classes a is that of logistic regression with the same kernel, which leaves out to first order.
For regressions a second function of the same kernel learns how far off the first is, and intervals are in proportion.

GL-net with few channels sees P ΔW Qᵀ, linear in ΔW, which carries the noise that A started from; the column space
does not, and no function of P ΔW Qᵀ with h < out rows can tell all column spaces apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.errors import PredictorError
from lorascope.predict.explanation import Contributions
from lorascope.predict.fitted_kernels import FittedKernels, bounded, ranks_of
from lorascope.predict.kernel import KERNELS, Kernel, Tokens
from lorascope.predict.kernel_explanation import contributions_of
from lorascope.predict.kernel_learning import CONSTANT
from lorascope.predict.kernel_levels import Bundle, bundles_of, levels_of, subset_of_groups, weights_by_level
from lorascope.predict.kernel_machine import Comparison, Machine
from lorascope.predict.kernel_solution import Doubt, Learning, by_logistic, crossed, doubt_of, solutions_of
from lorascope.predict.leave_one_out import Matrix, blocks_of_groups
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
        """The tokens of every site; those of the sides of many large adapters lie on disk (``stored_tokens``)."""
        return tokens_of(
            samples, structure, size=self.size, seed=self.seed, exact=EXACT, advance=advance, may_store=True
        )

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
        learned = [Learning(levels[: number + 1], frozenset(self.kernels)) for number in range(len(found))]
        stable = {member.name for member in members if member.is_rank_stable}
        kept = [bundle for bundle in bundles if bundle.parts[0].kernel in stable]
        if kept and len(kept) < len(bundles):
            found.append(weights_by_level(kept, Y[chosen], blocks, levels[:2])[-1])
            learned.append(Learning(levels[:2], frozenset(stable)))
        solutions = solutions_of(comparison, inputs, Y, found, blocks_of_groups(train.groups))
        best = min(range(len(solutions)), key=lambda number: solutions[number].error)
        at_any_rank = len(solutions) - 1 if kept and len(kept) < len(bundles) else best
        classes = train.targets if target.is_classification else None
        own = [learned[best], learned[at_any_rank]]
        anew: Sequence[Matrix | None] = [None, None]
        if len(chosen) == len(Y):
            anew = crossed(lambda taught: self._taught(train, taught, structure), own, Y, train.groups, seed, classes)
        machines: list[Machine] = []
        doubts: list[Doubt | None] = []
        left_out: list[Matrix] = []
        for number, again in zip((best, at_any_rank), anew, strict=True):
            solution = solutions[number]
            if classes is None:
                a, unseen, middle = solution.a * spread, solution.left_out, mean
            else:
                a, unseen = by_logistic(solution, classes, train.groups, chosen)
                middle = np.zeros_like(mean)
            unseen = unseen if again is None else again
            shift = middle + CONSTANT * a.sum(axis=0)
            left_out.append(unseen if classes is not None else unseen * spread + mean)
            doubts.append(None if classes is not None else doubt_of(solution, unseen, Y, train.groups))
            if (doubt := doubts[-1]) is not None:
                a = np.concatenate([a, doubt.a], axis=1)
                shift = np.concatenate([shift, doubt.mean + CONSTANT * doubt.a.sum(axis=0)])
            machines.append(Machine.of(comparison, solution.weights, inputs, a, shift))
        ranks = ranks_of(inputs)
        return FittedKernels(
            principal,
            machines[0],
            machines[1],
            (int(ranks.min()), int(ranks.max())),
            (left_out[0], train.targets),
            solutions[best].weights,
            target.width,
            np.ones(len(Y)) if doubts[0] is None else bounded(doubts[0].left_out),
        )

    def _taught(self, train: Split, taught: NDArray[np.int64], structure: Structure) -> list[Bundle]:
        """The kernels of all training adapters, in the directions and with the centres that some of them teach."""
        sites = sites_of(structure)
        some = {name: array[taught] for name, array in train.inputs.items()}
        principal = Principal.of(some, self.principal)
        comparison = Comparison.of(self.compared(), sites, principal(some))
        return bundles_of(comparison.grams(principal(train.inputs)), levels_of(sites)[-1])

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


MODEL = Kernels
