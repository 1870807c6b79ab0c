"""The weights of a merge: one for each adapter, and others for the sites that a pattern names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import LorascopeError
from lorascope.symmetry.stack import largest_product


@dataclass(frozen=True, eq=False)
class Weights:
    """``everywhere`` [n]; ``by_pattern``: (pattern, [n]), of which the first that fits a site is taken.

    A pattern is a shell pattern for the whole name of a site, such as ``*.layers.1?.*``.

    >>> weights = Weights.of(2, np.ones(2), [("*.k", [0.0, 2.0])])
    >>> weights.at("layers.0.k"), weights.at("layers.0.q")
    (array([0., 2.]), array([1., 1.]))
    """

    everywhere: NDArray[np.float64]
    by_pattern: tuple[tuple[str, NDArray[np.float64]], ...] = ()

    @classmethod
    def of(
        cls,
        count: int,
        everywhere: Sequence[float] | NDArray[np.float64],
        by_pattern: Sequence[tuple[str, Sequence[float]]] = (),
    ) -> Weights:
        """Checked.

        Raises:
            LorascopeError: where there is not one finite weight for each adapter.
        """
        checked = [_checked(count, values, pattern) for pattern, values in (("weights", everywhere), *by_pattern)]
        return cls(checked[0], tuple((pattern, own) for (pattern, _), own in zip(by_pattern, checked[1:], strict=True)))

    def at(self, site: str) -> NDArray[np.float64]:
        """The weights at a site."""
        for pattern, own in self.by_pattern:
            if re.fullmatch(translate(pattern), site):
                return own
        return self.everywhere

    def unused(self, sites: Sequence[str]) -> list[str]:
        """The patterns that fit none of the sites: mistyped, as a rule."""
        return [
            pattern
            for pattern, _ in self.by_pattern
            if not any(re.fullmatch(translate(pattern), site) for site in sites)
        ]


def _checked(count: int, values: Sequence[float] | NDArray[np.float64], key: str) -> NDArray[np.float64]:
    own = np.asarray(values, np.float64)
    if own.shape != (count,):
        raise LorascopeError("there is not one weight for each adapter", key=key, expected=count, found=own.size)
    if not all(math.isfinite(value) for value in cast("list[float]", own.tolist())):
        raise LorascopeError("a weight is not a finite number", key=key, found=own.tolist())
    if float(np.abs(own).max(initial=0.0)) >= largest_product(np.float64):
        raise LorascopeError("a weight is too large to compute with", key=key, found=own.tolist())
    return own
