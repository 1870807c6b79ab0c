"""How many directions each site keeps where the whole adapter has a budget of parameters.

    maximise Σ_s Σ_{i < k_s} σ²_{s,i}      subject to      Σ_s k_s (out_s + in_s) ≤ budget

A direction of a site costs out + in parameters whichever it is, and the squares fall within a site, so the directions
taken in the order of σ² / (out + in) are always the leading ones. The first that has no room ends the relaxation to
fractions, whose value (Dantzig 1957) no choice can exceed; after it, what still fits is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import LorascopeError


@dataclass(frozen=True)
class Allocation:
    """Ranks within a budget.

    Args:
        ranks: site → how many directions are kept, 0 of a site that is left out.
        budget: the parameters that were allowed.
        parameters: Σ rank · (out + in), at most ``budget``.
        kept: the share of Σ σ² of all of ΔW that is kept.
        bound: the share that no choice of ranks exceeds, within the budget and what each site has to keep and may have.
    """

    ranks: Mapping[str, int]
    budget: int
    parameters: int
    kept: float
    bound: float

    @property
    def relative_error(self) -> float:
        """√(1 − kept): the relative error of this choice."""
        return math.sqrt(max(0.0, 1.0 - self.kept))

    @property
    def least_error(self) -> float:
        """√(1 − bound): no choice of ranks within the budget has a smaller relative error."""
        return math.sqrt(max(0.0, 1.0 - self.bound))


def allocated(
    spectra: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, tuple[int, int]],
    budget: int,
    least: Mapping[str, int] | None = None,
    most: Mapping[str, int] | None = None,
) -> Allocation:
    """The best ranks within a budget, optimal but for what the last direction leaves unused.

    Args:
        spectra: site → its singular values, descending.
        shapes: site → (out, in).
        budget: parameters of all sites together.
        least: site → a rank that it has to keep, 0 where it is not named.
        most: site → a rank that it may have, all of its values where it is not named.

    Raises:
        LorascopeError: where the budget holds not one direction, or not what has to be kept.

    >>> found = allocated({"q": np.array([3.0, 1.0]), "k": np.array([2.0])}, {"q": (4, 4), "k": (4, 4)}, 17)
    >>> dict(found.ranks), found.parameters, round(found.kept, 3), round(found.bound, 3)
    ({'q': 1, 'k': 1}, 16, 0.929, 0.937)
    """
    costs = {site: sum(shapes[site]) for site in spectra}
    ranks = {site: (least or {}).get(site, 0) for site in spectra}
    room = budget - sum(ranks[site] * costs[site] for site in spectra)
    smallest = min((cost for site, cost in costs.items() if np.any(spectra[site] > 0)), default=0)
    if budget < smallest or room < 0:
        raise LorascopeError(
            "the budget has no room for a single direction" if budget < smallest else "the budget is too small",
            key="budget",
            expected=f"at least {max(smallest, budget - room)} parameters",
            found=budget,
        )
    unit = max((float(S[0]) for S in spectra.values() if len(S)), default=0.0) or 1.0  # squares would leave the range
    squares = {site: (np.asarray(S, np.float64) / unit) ** 2 for site, S in spectra.items()}
    total = math.fsum(math.fsum(values) for values in squares.values())
    kept = math.fsum(math.fsum(squares[site][:rank]) for site, rank in ranks.items())
    bound: float | None = None
    allowed = {site: values[: (most or {}).get(site, len(values))] for site, values in squares.items()}
    for site, value in _ordered(allowed, costs, ranks):
        if costs[site] <= room:
            ranks[site] += 1
            room -= costs[site]
            kept += value
        elif bound is None:
            bound = kept + value * room / costs[site]
    shares = [1.0 if total == 0 else min(1.0, part / total) for part in (kept, kept if bound is None else bound)]
    return Allocation(ranks, budget, sum(ranks[site] * costs[site] for site in ranks), shares[0], max(shares))


def _ordered(
    squares: Mapping[str, NDArray[np.float64]], costs: Mapping[str, int], taken: Mapping[str, int]
) -> Sequence[tuple[str, float]]:
    """(site, σ²) of all directions that are not taken yet, by σ² for each parameter; ties by site, then by place."""
    names = list(squares)
    found = [
        (-value / costs[site], number, place, site, float(value))
        for number, site in enumerate(names)
        for place, value in enumerate(squares[site])
        if place >= taken[site] and value > 0
    ]
    return [(site, value) for *_, site, value in sorted(found)]
