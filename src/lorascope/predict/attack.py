"""What is done to adapters before they are judged, and the family of it.

An attack that keeps ΔW leaves the finetune alone and changes the file: a model that then says something else was
reading the file. One that moves ΔW says how far: a model should follow smoothly. All are drawn from a generator that
knows the attack's seed and the adapter's id, so that the same adapter is always attacked alike, in whatever company.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.family import Family
from lorascope.predict.model import Sample
from lorascope.symmetry import distance, refactored

Factors = tuple[NDArray[np.floating], NDArray[np.floating]]
Change = Callable[[NDArray[np.float64], NDArray[np.float64], np.random.Generator], Factors]
"""B [out, rank], A [rank, in] in float64 and a generator to the factors as the attacked file stores them."""


@dataclass(frozen=True)
class Attack:
    """A member of the family.

    Args:
        name: of the attack.
        formula: what is done to the factors of a site.
        keeps_update: whether ΔW stays what it was, up to the rounding of the stored dtype.
        changes: the columns of a table that it fills, each with its change.
    """

    name: str
    formula: str
    keeps_update: bool
    changes: Mapping[str, Change]


ATTACKS: Family[Attack] = Family("attack", "lorascope.predict.attacks", "ATTACK", "lorascope.attacks")


def attacked(adapter: Adapter, change: Change, *, name: str, seed: int = 0) -> Adapter:
    """The adapter after a change of all of its sites; ``name`` and ``seed`` set what is drawn."""
    digest = blake2b(name.encode(), digest_size=8).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest, "little")])
    return refactored(adapter, lambda B, A: change(B, A, rng))


def attacked_samples(
    samples: Sequence[Sample], names: Sequence[str], change: Change, *, seed: int = 0
) -> tuple[Sample, ...]:
    """Samples that are attacked whenever they are read."""

    def reader(sample: Sample, name: str) -> Callable[[], Adapter]:
        return lambda: attacked(sample.read(), change, name=name, seed=seed)

    return tuple(sample._replace(read=reader(sample, name)) for sample, name in zip(samples, names, strict=True))


def relative_change(before: Adapter, after: Adapter) -> float:
    """‖ΔW′ − ΔW‖_F / ‖ΔW‖_F over all sites together; NaN for an untrained adapter.

    >>> from lorascope.adapter import LowRank
    >>> one, two = (Adapter({"q": LowRank(b * np.ones((2, 1)), np.ones((1, 2)))}) for b in (1.0, 1.5))
    >>> round(relative_change(one, two), 12)
    0.5
    """
    squares = 0.0
    for site, update in before.items():
        B, A, scale = update.factors(np.float64)
        other_B, other_A, other_scale = after[site].factors(np.float64)
        squares += float(distance(B, A, other_B, other_A, scale, other_scale)) ** 2
    norm = before.norm()
    return float(np.sqrt(squares)) / norm if norm > 0 else float("nan")
