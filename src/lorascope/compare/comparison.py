"""``compare``: how far adapters of one base are from each other, as a whole and site by site.

    distance            ‖ΔW₁ − ΔW₂‖_F, from QR of the stacked factors
    cosine              ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖)
    relative_distance   distance / max(‖ΔW₁‖, ‖ΔW₂‖): symmetric, in [0, 2], 0 of the same update
    spectrum_distance   √(Σ_k (σ_k(ΔW₁) − σ_k(ΔW₂))²) ≤ distance (Mirsky 1960)
    share               ‖ΔW_i‖² / Σ_j ‖ΔW_j‖²: who dominates their sum
    interference        1 − ‖Σ ΔW_i‖ / Σ ‖ΔW_i‖: 0 where all point one way, 1 where they cancel, 1 − 1/√n of
                        n orthogonal ones of one size

Figures are over the sites that all of the adapters have; those that only some have are listed with their norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.adapter.spectra import Spectrum, spectra_of
from lorascope.compare.angles import Angles, mean_angles
from lorascope.compare.pairwise import Pairwise, pairwise
from lorascope.compare.signs import Signs, sign_agreement
from lorascope.errors import AdapterError, LorascopeError
from lorascope.symmetry.canonical import SVD, thin_svd
from lorascope.symmetry.common_sites import CommonSites, Pair
from lorascope.symmetry.cores import distance, inner, norm
from lorascope.symmetry.site_names import named_alike


@dataclass(frozen=True)
class SitePair:
    """Two updates of one site. Angles are None where one of them is zero, ``signs`` where they were not asked for."""

    norms: tuple[float, float]
    inner: float
    distance: float
    spectrum_distance: float
    columns: Angles | None
    rows: Angles | None
    signs: Signs | None

    @property
    def cosine(self) -> float | None:
        """None where one of the two is zero."""
        return _cosine(self.inner, *self.norms)

    @property
    def relative_distance(self) -> float:
        """``distance`` over the larger norm; 0 where both are zero."""
        return self.distance / max(self.norms) if max(self.norms) > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """n adapters over the sites that all of them have.

    Args:
        names: of the adapters.
        pairwise: inner products and distances [n, n].
        sites: site → the two updates, where there are two adapters; empty of more.
        shared: the sites.
        not_shared: name → site → ‖ΔW‖, of the sites that not all have.
        sum_norm: ‖Σ ΔW_i‖.
    """

    names: tuple[str, ...]
    pairwise: Pairwise
    sites: Mapping[str, SitePair]
    shared: tuple[str, ...]
    not_shared: Mapping[str, Mapping[str, float | None]]
    sum_norm: float

    @property
    def norms(self) -> NDArray[np.float64]:
        """‖ΔW_i‖ [n] over the shared sites."""
        return self.pairwise.norms

    @property
    def distance(self) -> float:
        """Of the two adapters."""
        return float(self.pairwise.distance[0, 1])

    @property
    def cosine(self) -> float | None:
        """Of the two adapters; None where one is zero."""
        value = float(self.pairwise.cosine[0, 1])
        return value if math.isfinite(value) else None

    @property
    def relative_distance(self) -> float:
        """Of the two adapters."""
        return float(self.pairwise.relative_distance[0, 1])

    @property
    def spectrum_distance(self) -> float:
        """Of the two adapters, over all sites."""
        return math.hypot(*(site.spectrum_distance for site in self.sites.values()))

    @property
    def shares(self) -> list[float | None]:
        """‖ΔW_i‖² / Σ ‖ΔW‖² [n]; None where all are zero."""
        largest = float(self.norms.max())
        if largest == 0:
            return [None] * len(self.names)
        squares = (self.norms / largest) ** 2
        return (squares / squares.sum()).tolist()

    @property
    def interference(self) -> float | None:
        """1 − ‖Σ ΔW_i‖ / Σ ‖ΔW_i‖, in [0, 1]; None where all are zero."""
        total = math.fsum(self.norms.tolist())
        return min(1.0, max(0.0, 1.0 - self.sum_norm / total)) if total > 0 else None

    @property
    def columns(self) -> Angles | None:
        """Angles of column spaces over the sites of two adapters."""
        return mean_angles([site.columns for site in self.sites.values() if site.columns is not None])

    @property
    def rows(self) -> Angles | None:
        """Angles of row spaces over the sites of two adapters."""
        return mean_angles([site.rows for site in self.sites.values() if site.rows is not None])

    @property
    def signs(self) -> Signs | None:
        """Over all entries of two adapters, None where they were not counted."""
        found = [site.signs for site in self.sites.values() if site.signs is not None]
        total = Signs(0, 0, 0)
        for one in found:
            total = total.plus(one)
        return total if found else None


def compare(
    adapters: Sequence[Adapter],
    *,
    names: Sequence[str] | None = None,
    has_signs: bool = False,
    is_any_base: bool = False,
    advance: Callable[[int], Any] | None = None,
) -> Comparison:
    """Compare two adapters or more.

    Formats, ranks, scales and dtypes may differ. Two adapters are looked at site by site, of more only the distances
    and cosines of all pairs.

    Args:
        adapters: of one base.
        names: of the adapters, for messages.
        has_signs: count signs entry by entry as well (of two adapters).
        is_any_base: go on where they name different base models.
        advance: called with the number of sites done.

    Raises:
        AdapterError: where a site has two shapes, no site is common to all, or a ΔW is not known without the base.
        LorascopeError: for fewer than two, or signs of more than two.

    >>> from lorascope.adapter import LowRank
    >>> one = Adapter({"q": LowRank(np.array([[3.0], [4.0]]), np.eye(1, 2))})
    >>> two = Adapter({"q": LowRank(np.array([[3.0], [0.0]]), np.eye(1, 2)), "k": LowRank(np.eye(2, 1), np.eye(1, 2))})
    >>> found = compare([one, two], names=["one", "two"])
    >>> found.distance, round(found.cosine, 12), found.relative_distance, dict(found.not_shared["two"])
    (4.0, 0.6, 0.8, {'k': 1.0})
    """
    if len(adapters) < 2:
        raise LorascopeError("there is nothing to compare", expected="two adapters or more", found=len(adapters))
    if has_signs and len(adapters) > 2:
        raise LorascopeError(
            "signs are counted of two adapters at a time",
            expected="two",
            found=len(adapters),
            hint="compare them in pairs",
        )
    common = CommonSites.of(named_alike(adapters), names, is_any_base=is_any_base)
    if not common.shared:
        raise AdapterError(
            "the adapters have no site in common",
            file=common.names[0],
            expected="adapters of the same layers of one base",
            found=", ".join(next(iter(adapter), "none") for adapter in common.adapters[:2]),
        )
    own = [(name, adapter) for name, adapter in zip(common.names, common.adapters, strict=True)]
    shared = set(common.shared)
    not_shared = {
        name: {site: _norm_of(adapter, site, name) for site in adapter if site not in shared} for name, adapter in own
    }
    sites = _two(common, advance, has_signs=has_signs) if len(adapters) == 2 else {}
    found = _of_sites(sites) if sites else pairwise(common, sites=common.shared, advance=advance)
    total = math.hypot(*(_sum_norm(common.pairs(site, np.float64)) for site in common.shared))
    if not (np.isfinite(found.gram).all() and math.isfinite(total)):
        raise AdapterError("an update is too large to compare", file=common.names[0])
    kept = {name: norms for name, norms in not_shared.items() if norms}
    return Comparison(common.names, found, sites, common.shared, kept, total)


def _two(common: CommonSites, advance: Callable[[int], Any] | None, *, has_signs: bool) -> dict[str, SitePair]:
    parts = [adapter.with_sites({site: adapter[site] for site in common.shared}) for adapter in common.adapters]
    one, other = (_spectra(part, name) for part, name in zip(parts, common.names, strict=True))
    sites: dict[str, SitePair] = {}
    for site in common.shared:
        sites[site] = _site(common.pairs(site, np.float64), one[site], other[site], has_signs=has_signs)
        if advance is not None:
            advance(1)
    return sites


def _spectra(adapter: Adapter, name: str) -> Mapping[str, Spectrum | None]:
    try:
        found = spectra_of(adapter)
    except AdapterError as error:
        error.file = error.file or name
        raise
    return {site: found.get(site) for site in adapter}


def _site(pairs: Sequence[Pair], one: Spectrum | None, other: Spectrum | None, *, has_signs: bool) -> SitePair:
    left, right = (_whole(pair) for pair in pairs)
    svds = [thin_svd(*pair) for pair in (left, right)]
    ranks = [
        int(np.count_nonzero(svd.S > 0)) if spectrum is None else min(spectrum.effective_rank, len(svd.S))
        for svd, spectrum in zip(svds, (one, other), strict=True)
    ]
    norms = float(norm(*left)), float(norm(*right))
    return SitePair(
        norms,
        float(inner(*left, *right)),
        float(distance(*left, *right)),
        _spectrum_distance(svds[0], svds[1]),
        Angles.of(svds[0], ranks[0], svds[1], ranks[1], side="out"),
        Angles.of(svds[0], ranks[0], svds[1], ranks[1], side="in"),
        sign_agreement(left, right) if has_signs else None,
    )


def _whole(pair: Pair) -> Pair:
    """With a column of zeros where the rank is 0, which QR has no meaning for."""
    if pair.B.shape[1]:
        return pair
    return Pair(np.zeros((pair.B.shape[0], 1)), np.zeros((1, pair.A.shape[1])))


def _spectrum_distance(one: SVD, other: SVD) -> float:
    return math.hypot(*(a - b for a, b in zip_longest(one.S.tolist(), other.S.tolist(), fillvalue=0.0)))


def _of_sites(sites: Mapping[str, SitePair]) -> Pairwise:
    """The figures of two adapters from those of their sites, of which none has come from an expansion."""
    gram, distances = np.zeros((2, 2)), np.zeros((2, 2))
    for k in range(2):
        whole = math.hypot(*(site.norms[k] for site in sites.values()))
        gram[k, k] = whole * whole
    gram[0, 1] = gram[1, 0] = math.fsum(site.inner for site in sites.values())
    distances[0, 1] = distances[1, 0] = math.hypot(*(site.distance for site in sites.values()))
    return Pairwise(gram, distances, 1)


def _sum_norm(pairs: Sequence[Pair]) -> float:
    """‖Σ B_i A_i‖ from QR of all factors side by side."""
    whole = _whole(Pair(np.concatenate([p.B for p in pairs], axis=1), np.concatenate([p.A for p in pairs], axis=0)))
    return float(norm(*whole))


def _norm_of(adapter: Adapter, site: str, name: str) -> float | None:
    """None where only the base weight tells."""
    if adapter[site].needs not in ("nothing", "dense room"):
        return None
    try:
        return adapter[site].norm()
    except AdapterError as error:
        error.file, error.key = error.file or name, error.key or site
        raise


def _cosine(product: float, norm1: float, norm2: float) -> float | None:
    size = norm1 * norm2
    return max(-1.0, min(1.0, product / size)) if size > 0 else None
