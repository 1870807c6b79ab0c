"""Spherical interpolation of two updates: on the great circle between their directions, at a length between theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lorascope.errors import LorascopeError
from lorascope.merge.checks import check_two, convex
from lorascope.merge.method import Base, Parts, Product, concatenated
from lorascope.symmetry.cores import distance, norm

_OPPOSITE = 1e-6  # radians


@dataclass(frozen=True)
class Slerp(Base):
    """Of ΔW_1 and ΔW_2 as vectors, exactly: a sum of both with other weights, so of rank at most r_1 + r_2.

    With weights (w_1, w_2), t = w_2 / (w_1 + w_2). Equal directions: the mean of the lengths. A zero update has no
    direction: the mean with it. Opposite directions have no shortest arc: refused.
    """

    name: ClassVar[str] = "slerp"
    formula: ClassVar[str] = (
        "((1−t)‖ΔW_1‖ + t‖ΔW_2‖) (sin((1−t)θ) ΔW_1/‖ΔW_1‖ + sin(tθ) ΔW_2/‖ΔW_2‖) / sin θ, t = w_2/(w_1+w_2)"
    )
    reference: ClassVar[str] = "Shoemake (1985), Animating rotation with quaternion curves"

    def check(self, count: int) -> None:
        """Two, neither more nor less."""
        check_two(self.name, count)

    def __call__(self, parts: Parts) -> Product:
        """The angle from ‖x − y‖ and ‖x + y‖ of the unit updates, which is exact where both are nearly equal."""
        weights = convex(parts.weights, self.name)
        t = float(weights[1])
        one, two = parts.pairs
        lengths = [float(norm(*pair)) if pair.B.shape[1] else 0.0 for pair in parts.pairs]
        if 0.0 in lengths:
            return concatenated(parts.pairs, weights)
        first, second = 1 / lengths[0], 1 / lengths[1]
        apart = float(distance(*one, *two, first, second))
        together = float(distance(*one, *two, first, -second))
        angle = 2 * math.atan2(apart, together)
        if math.pi - angle < _OPPOSITE:
            raise LorascopeError(
                "the two updates point in opposite directions: there is no shortest way from one to the other",
                key=parts.site,
                hint="`average` goes straight through zero; --weights-for leaves out one of them at this site",
            )
        length = (1 - t) * lengths[0] + t * lengths[1]
        shares = [1 - t, t] if angle == 0 else [math.sin((1 - t) * angle), math.sin(t * angle)]
        divisor = 1.0 if angle == 0 else math.sin(angle)
        return concatenated(parts.pairs, length / divisor * np.array(shares) * np.array([first, second]))


METHOD = Slerp
