"""What an adapter looks like at each site, in four numbers that no gauge changes, and how training adapters lie there.

    log norm          log ‖ΔW‖_F
    log spread        log ((Σσ²)² / Σσ⁴) of the leading σ, as many as training adapters have: how many directions carry
                      the energy; 0 at rank 1, and comparable at higher ranks than those of training
    column space      log tr(M  ΔW ΔWᵀ / ‖ΔW‖²),   M = mean over training adapters of  ΔW ΔWᵀ / ‖ΔW‖²
    row space         the same of ΔWᵀ

M is the part of the output (input) space where training adapters put their energy. Energy, σ², weighs the directions,
so an adapter of another rank is compared by what carries it; a random one has tr(M ·) ≈ 1/out. All of it is seen
through the sketches of ``features.projection`` where a side has more than ``SIZE`` dimensions. An absent update
(ΔW = 0) has no such numbers: NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.features.feature import Change
from lorascope.features.projection import projected
from lorascope.predict.kernel import Tokens
from lorascope.predict.tokens import height
from lorascope.symmetry import SiteStack

Matrix = NDArray[np.float64]

SIZE, SEED = 64, 0
"""Of the sketches, as for ``tokens``; sides of 64 dimensions or fewer are exact."""

NOTHING = 1e-12
"""A smaller norm is no update."""

STATISTICS = ("log norm", "log spread", "column space", "row space")


class Reduced(NamedTuple):
    """The sites of one shape: log norms [N, S], σ/‖ΔW‖ [N, S, k], and P U σ/‖ΔW‖, Q V σ/‖ΔW‖ [N, S, h, k]."""

    names: tuple[str, ...]
    log_norm: Matrix
    relative: Matrix
    left: Matrix
    right: Matrix

    @classmethod
    def of(cls, stack: SiteStack) -> Reduced:
        """From the thin SVD that the stack shares with the features computed on it."""
        left, right = (
            projected(stack, side, height(SIZE, n), SEED) for side, n in zip(("out", "in"), stack.shape, strict=True)
        )
        return cls.of_tokens(stack.names, Tokens(np.asarray(left), np.asarray(stack.svd.S), np.asarray(right)))

    @classmethod
    def of_tokens(cls, names: tuple[str, ...], tokens: Tokens) -> Reduced:
        """From P U [N, S, h, k], σ [N, S, k] and Q V of the sites of one shape."""
        S = np.asarray(tokens.S, np.float64)
        largest = S[..., :1]
        shape = S / np.maximum(largest, 1e-300)  # squares of tiny or huge values would leave the range
        length = np.sqrt((shape**2).sum(-1, keepdims=True))
        log_norm = np.log(np.maximum(largest * length, 1e-300))[..., 0]
        relative = shape / np.maximum(length, 1.0)
        left, right = (np.asarray(side, np.float64) * relative[..., None, :] for side in (tokens.left, tokens.right))
        return cls(names, log_norm, relative, left, right)

    @property
    def present(self) -> NDArray[np.bool_]:
        """[N, S]: where there is an update."""
        return self.log_norm > np.log(NOTHING)

    def energies(self) -> dict[str, tuple[Matrix, Matrix]]:
        """site → the sums over adapters of ΔW ΔWᵀ/‖ΔW‖² [h, h] and of ΔWᵀΔW/‖ΔW‖²."""
        present = self.present[..., None, None]
        sums: list[Matrix] = []
        for factor in (self.left, self.right):
            wide = _wide(np.where(present, factor, 0.0))
            sums.append(wide @ wide.swapaxes(-1, -2))
        return {name: (sums[0][j], sums[1][j]) for j, name in enumerate(self.names)}


def reduced_of(inputs: Mapping[str, NDArray[Any]], stacks: Sequence[Sequence[str]]) -> list[Reduced]:
    """From the tokens of all sites; ``stacks`` are the names of the sites of each shape."""
    return [
        Reduced.of_tokens(tuple(names), Tokens(*(inputs[f"{part}{place}"] for part in ("left", "S", "right"))))
        for place, names in enumerate(stacks)
    ]


def _wide(factor: Matrix) -> Matrix:
    """[N, S, h, k] as [S, h, N·k]: one product of matrices for each site."""
    n, sites, h, k = factor.shape
    return factor.transpose(1, 2, 0, 3).reshape(sites, h, n * k)


@dataclass(frozen=True, eq=False)
class SiteStatistics:
    """The four numbers of every site, as a feature: [N, S, 4].

    Args:
        left, right: site → M on the output and the input side, [h, h].
        leading: how many singular values the spread is of.
    """

    left: Mapping[str, Matrix]
    right: Mapping[str, Matrix]
    leading: int
    name: ClassVar[str] = "site-statistics"
    formula: ClassVar[str] = "log ‖ΔW‖, log (Σσ²)²/Σσ⁴, log tr(M ΔWΔWᵀ)/‖ΔW‖², log tr(M′ ΔWᵀΔW)/‖ΔW‖²"
    reference: ClassVar[str] = "lorascope"
    sees: ClassVar[frozenset[Change]] = frozenset({"scale", "rotate out", "rotate in"})
    blind_to: ClassVar[frozenset[Change]] = frozenset({"sign"})

    def __call__(self, stack: SiteStack) -> Any:
        return self.of(Reduced.of(stack))

    def of(self, reduced: Reduced) -> Matrix:
        """[N, S, 4], NaN where ΔW = 0."""
        energy = reduced.relative[..., : self.leading] ** 2
        spread = np.log(np.maximum(energy.sum(-1) ** 2, 1e-300) / np.maximum((energy**2).sum(-1), 1e-300))
        sides = [
            np.log(np.maximum(_overlap(factor, np.stack([means[name] for name in reduced.names])), 1e-12))
            for factor, means in ((reduced.left, self.left), (reduced.right, self.right))
        ]
        values = np.stack([reduced.log_norm, spread, *sides], axis=-1)
        values[~reduced.present] = np.nan
        return values


def _overlap(factor: Matrix, M: Matrix) -> Matrix:
    """tr(M X Xᵀ) [N, S] for X [N, S, h, k]."""
    n, sites, _, k = factor.shape
    wide = _wide(factor)
    return ((M @ wide) * wide).sum(1).reshape(sites, n, k).sum(-1).T
