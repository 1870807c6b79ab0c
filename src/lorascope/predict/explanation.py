"""Which sites, features and directions of an adapter a prediction comes from.

exact      A linear model on features that are sums over sites: the score is the mean score of the training adapters
           plus, for each site, what its features add to their training mean. The parts sum to the whole to rounding.
gradient   A network f: what a site adds is ⟨∂f/∂ΔW, ΔW⟩, the change of f per relative change of that ΔW. Parts sum to
           the derivative of f along the scale of the whole adapter, which is not f.

The gradient is taken on factors: Σ ∂f/∂B ∘ B. That no gauge changes it follows from f (B M⁻¹, M A) = f (B, A): the
derivative by B goes over into ∂f/∂B Mᵀ, and ⟨∂f/∂B Mᵀ, B M⁻¹⟩ = tr(M (∂f/∂B)ᵀ B M⁻¹) = ⟨∂f/∂B, B⟩. If f is g(B A), then
∂f/∂B = ∇g Aᵀ and the sum is ⟨∇g, B A⟩: the same from the side of A.

Within a site the parts go over the singular directions of ΔW = Σ σ_i u_i v_iᵀ. Exact: a sketch of U f(S) Uᵀ is
Σ f(σ_i) u_i u_iᵀ, so ⟨C, ·⟩ splits into f(σ_i) u_iᵀ C u_i. Gradient: column i of ∂f/∂B ∘ B on the balanced factors
U √S, √S Vᵀ sums to σ_i u_iᵀ ∇g v_i. Directions of equal σ can be turned into each other: only their sum has a meaning.

Source: gradient × input (Shrikumar et al., arXiv 1605.01713), here on a quotient by GL(r).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.predict.model import FittedModel, Structure

Matrix = NDArray[np.float64]
How = Literal["exact", "gradient"]

TOP = 5
"""Of how many sites the directions are told."""


class Contributions(NamedTuple):
    """What one adapter's parts add to the scores [t] of one fitted model.

    ``sites`` name → [t]; ``features`` name → site → [t], empty of a network; ``directions`` site → [k, t], one row for
    each singular value of ΔW there; ``baseline`` [t] is what the sites add to, None where they do not sum to the score.
    """

    how: How
    sites: Mapping[str, Matrix]
    features: Mapping[str, Mapping[str, Matrix]]
    directions: Mapping[str, Matrix]
    baseline: Matrix | None


@runtime_checkable
class Explains(Protocol):
    """A model that can say what its scores come from."""

    def contributions(self, fitted: FittedModel, adapter: Adapter, structure: Structure) -> Contributions:
        """Of one adapter.

        Raises:
            PredictorError: for an adapter of another structure.
        """
        ...


@dataclass(frozen=True)
class Explanation:
    """What a predictor's value for one adapter comes from, the mean over its members.

    Args:
        label: the class that is explained; None for regression.
        unit: ``target`` (the target's unit) or ``logit`` (of the label's calibrated probability; of several classes,
            before it is divided by their sum).
        how: ``exact``: baseline + Σ sites = score; ``gradient``: sites are changes of the score per relative change of
            their ΔW.
        score: what is explained.
        baseline: for exact ones, the mean score of the training adapters.
        sites: site → its part, the largest first.
        features: feature → its part over all sites, for models on features.
        directions: for the ``TOP`` sites, (σ, part) for each singular direction; what is left of the site's part is
            its norm, and the training mean.
    """

    target: str
    model: str
    label: Any
    unit: Literal["target", "logit"]
    how: How
    score: float
    baseline: float | None
    sites: Mapping[str, float]
    features: Mapping[str, float]
    directions: Mapping[str, list[tuple[float, float]]]
    path: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The explanation as a JSON object."""
        return {
            "schema_version": 1,
            "path": self.path,
            "target": self.target,
            "model": self.model,
            "label": self.label,
            "unit": self.unit,
            "how": self.how,
            "score": self.score,
            "baseline": self.baseline,
            "sites": dict(self.sites),
            "features": dict(self.features),
            "directions": {
                site: [{"singular_value": sigma, "contribution": part} for sigma, part in parts]
                for site, parts in self.directions.items()
            },
        }


def mean_of(parts: list[tuple[Contributions, float, float]], column: int) -> Contributions:
    """One column of the members' contributions, each times its slope, averaged; its intercept goes to the baseline.

    The arrays of the result are numbers: sites [], directions [k].
    """
    first = parts[0][0]

    def average(pick: Any) -> Any:
        return np.mean([slope * pick(member)[..., column] for member, slope, _ in parts], axis=0)

    baseline = None
    if first.baseline is not None:
        bases = [
            slope * member.baseline[column] + intercept
            for member, slope, intercept in parts
            if member.baseline is not None
        ]
        baseline = np.asarray(np.mean(bases), np.float64)
    return Contributions(
        first.how,
        {site: average(lambda member, site=site: member.sites[site]) for site in first.sites},
        {
            name: {site: average(lambda member, name=name, site=site: _of(member, name, site)) for site in first.sites}
            for name in {name: None for member, _, _ in parts for name in member.features}
        },
        {site: average(lambda member, site=site: member.directions[site]) for site in first.directions},
        baseline,
    )


def _of(member: Contributions, name: str, site: str) -> Matrix:
    """A feature's part at a site: nothing where the member gave the feature no weight."""
    if name not in member.features:
        return np.zeros_like(member.sites[site])
    return member.features[name][site]
