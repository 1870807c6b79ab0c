"""KnOTS with DARE and TIES: as ``knots-ties``, entries dropped at random instead of trimmed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.merge.checks import check_finite, check_share
from lorascope.merge.dropping import kept_at_random
from lorascope.merge.election import elected_mean
from lorascope.merge.joint import columns_of
from lorascope.merge.method import Base, Parts, Product


@dataclass(frozen=True)
class KnotsDareTies(Base):
    """On the entries of S V_iᵀ; nothing is trimmed, as in the published settings. Weights act as in ``ties``.

    Args:
        density: the probability that an entry stays.
        factor: what the result is multiplied by.
    """

    density: float = 0.9
    factor: float = 1.0

    name: ClassVar[str] = "knots-dare-ties"
    formula: ClassVar[str] = "as knots-ties, with (M_i ⊙ S V_iᵀ) / density in place of trim(S V_iᵀ)"
    reference: ClassVar[str] = "KnOTS, Stoica et al. (arXiv 2410.19735)"
    is_symmetric: ClassVar[bool] = False
    is_idempotent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("density", self.density)
        check_finite("factor", self.factor)

    def __call__(self, parts: Parts) -> Product:
        """Of rank at most the sum of the ranks, exactly."""
        U = columns_of(parts.counting.pairs).basis

        def dropped() -> Iterator[NDArray[Any]]:
            for place, pair in enumerate(parts.pairs):
                kept = kept_at_random(parts.shape[1], self.density, parts.generator(place))(slice(0, U.shape[1]))
                yield np.where(kept, (U.T @ pair.B) @ pair.A, 0.0) / self.density

        return Product(U, self.factor * elected_mean(dropped(), parts.weights))


METHOD = KnotsDareTies
