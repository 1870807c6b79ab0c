"""``resize``: an adapter of other ranks, each site cut optimally, the error of what is written.

    ΔW ≈ U_k S_k V_kᵀ      the best of rank k (``symmetry.truncation``), from QR of the factors; ΔW is never formed

Either every site is cut by the same rule (``Cut``), or all sites share one budget of parameters (``budget``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, Dense, Expanded, LowRank, Relative, Update
from lorascope.compress.budget import Allocation, allocated
from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats.dtypes import cast_to, floating_dtype
from lorascope.symmetry.canonical import SVD
from lorascope.symmetry.common_sites import Pair, check_range
from lorascope.symmetry.cores import distance
from lorascope.symmetry.truncation import Cut, Truncated, beyond_rounding, truncated

_HASHES = ("sshs_model_hash", "sshs_legacy_hash")  # of the tensors before
_RANKS = ("ss_network_dim", "ss_network_alpha")
_RANKLESS = ("ia3", "norm", "full", "lycoris-ia3", "replaced")


@dataclass(frozen=True)
class ResizedSite:
    """What became of a site.

    Args:
        rank_before, rank: the columns of B, before and after; 0 after where the site was left out.
        norm: ‖ΔW‖_F before.
        error: ‖ΔW' − ΔW‖_F of what is written, rounding to its dtype included.
        parameters_before: numbers of the stored factors.
        parameters: rank · (out + in).
    """

    rank_before: int
    rank: int
    norm: float
    error: float
    parameters_before: int
    parameters: int

    @property
    def relative_error(self) -> float:
        """``error`` / ``norm``; 0 of a zero update."""
        return self.error / self.norm if self.norm > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Resized:
    """``adapter``: the result. ``sites``: what became of each that was resized, those left out too.

    ``unchanged``: sites that have no rank, or whose ΔW only the base tells, and that stay as they are, uncounted.
    ``allocation``: how the budget was divided, None where there was none.
    """

    adapter: Adapter
    sites: Mapping[str, ResizedSite]
    unchanged: tuple[str, ...] = ()
    allocation: Allocation | None = None

    @property
    def relative_error(self) -> float:
        """Over all resized sites: √(Σ error²) / √(Σ norm²)."""
        norm = math.hypot(*(site.norm for site in self.sites.values()))
        return math.hypot(*(site.error for site in self.sites.values())) / norm if norm > 0 else 0.0

    @property
    def left_out(self) -> tuple[str, ...]:
        """The sites that got rank 0."""
        return tuple(name for name, site in self.sites.items() if site.rank == 0)

    @property
    def parameters_before(self) -> int:
        """Numbers of the stored factors of all resized sites."""
        return sum(site.parameters_before for site in self.sites.values())

    @property
    def parameters(self) -> int:
        """Σ rank · (out + in) of the result."""
        return sum(site.parameters for site in self.sites.values())


def resize(
    adapter: Adapter,
    cut: Cut = Cut(),  # noqa: B008  # frozen
    *,
    budget: int | None = None,
    dtype: DTypeLike | None = None,
    is_loss_allowed: bool = False,
    advance: Callable[[int], Any] | None = None,
) -> Resized:
    """Cut an adapter down.

    Structured updates of low rank (LoHa, LoKr, …) become plain factors. Updates that have no rank (IA3 gates, norms,
    full differences) and saved tensors stay as they are. A site that changes its bias keeps one direction at least.

    Args:
        adapter: what to cut.
        cut: how much of each site is kept.
        budget: parameters of all resized sites together, Σ rank · (out + in); ``cut`` bounds each site beside it.
        dtype: of the factors of the result; by default as stored, one-byte ones as float16.
        is_loss_allowed: leave sites whose ΔW only the base tells (DoRA, OFT) unchanged, and take what is in doubt as
            it was read, instead of refusing.
        advance: called with the number of sites done.

    Raises:
        AdapterError: where nothing can be resized, ΔW is not known or not finite.
        LorascopeError: where nothing is asked for, or the budget is too small.

    >>> B, A = np.diag([4.0, 3.0, 0.1]), np.eye(3)
    >>> small = resize(Adapter({"q": LowRank(B, A)}), Cut(rank=2))
    >>> small.adapter["q"].rank, round(small.relative_error, 4)
    (2, 0.02)
    """
    if cut.is_open and budget is None:
        raise LorascopeError("nothing is asked for", expected="a rank, energy, ratio, error or budget")
    stored = None if dtype is None else floating_dtype(dtype)
    _refuse_unclear(adapter, is_loss_allowed=is_loss_allowed)
    unchanged = _unchanged(adapter, is_loss_allowed=is_loss_allowed)
    names = [site for site in adapter if site not in unchanged]
    if not names:
        raise AdapterError(
            "there is nothing to resize", file=adapter.provenance.path, expected="sites of low rank, whose ΔW is known"
        )
    allocation = None if budget is None else _allocation(adapter, names, cut, budget)
    kept: dict[str, Update] = {}
    sites: dict[str, ResizedSite] = {}
    for name, update in adapter.items():
        if name in unchanged:
            kept[name] = update
            continue
        rank = None if allocation is None else allocation.ranks[name]
        small, sites[name] = _resized(adapter, name, cut, rank, stored)
        if sites[name].rank:
            kept[name] = small
        if advance is not None:
            advance(1)
    provenance = replace(adapter.provenance, metadata=_metadata(adapter.provenance.metadata, sites))
    result = replace(adapter.with_sites(kept), provenance=provenance)
    return Resized(result, sites, tuple(unchanged), allocation)


def _resized(
    adapter: Adapter, name: str, cut: Cut, rank: int | None, stored: np.dtype[Any] | None
) -> tuple[LowRank, ResizedSite]:
    """One site, in float64 until it is rounded to the dtype of the result."""
    update = adapter[name]
    pair = factors_of_site(adapter, name)
    svd, told = beyond_rounding(pair.B, pair.A)
    kept = cut.of(svd.S[:told])
    done = truncated(svd, kept if not rank else min(rank, kept))
    dtype = _factor_dtype(update) if stored is None else stored
    is_left_out = rank == 0
    small = plain_like(update, cast_to(done.B, dtype), cast_to(done.A, dtype))
    error = done.norm if is_left_out else _error(svd, done, small)
    after = 0 if is_left_out else small.rank
    before = sum(tensor.size for role, tensor in update.stored.items() if role != "bias")
    return small, ResizedSite(pair.B.shape[1], after, done.norm, error, before, after * sum(small.shape))


def _error(svd: SVD, done: Truncated, small: LowRank) -> float:
    """‖ΔW − W'‖_F of what is written, W' = B' A'.

    With R = ΔW − W_k what is cut away and ⟨R, W_k⟩ = 0:  ‖ΔW − W'‖² = ‖R‖² + ‖W_k − W'‖² − 2 ⟨R, W'⟩, of which the last
    is small against the others, so that no digits are lost.
    """
    B, A = small.B.astype(np.float64), small.A.astype(np.float64)
    rounding = float(distance(B, A, done.B, done.A))
    count = done.B.shape[1]
    overlap = (svd.U[:, count:].T @ B) * (svd.Vh[count:] @ A.T) * svd.S[count:, None]
    largest = max(done.error, rounding)
    if largest == 0.0:
        return 0.0
    square = (done.error / largest) ** 2 + (rounding / largest) ** 2 - 2 * (float(overlap.sum()) / largest) / largest
    return largest * math.sqrt(max(square, 0.0))


def _metadata(before: Mapping[str, str], sites: Mapping[str, ResizedSite]) -> dict[str, str]:
    """The metadata of the file with the new rank and alpha, which are equal, and without hashes of the old tensors."""
    ranks = {site.rank for site in sites.values() if site.rank}
    rank = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"  # the word of sd-scripts for ranks that differ
    return {key: rank if key in _RANKS else text for key, text in before.items() if key not in _HASHES}


def plain_like(update: Update, B: NDArray[Any], A: NDArray[Any]) -> LowRank:
    """B A as an update of the same layer, with the same change of its bias and scale 1."""
    return LowRank(
        B,
        A,
        layer=update.layer,
        kernel=update.kernel,
        is_transposed=update.is_transposed,
        layout=update.layout if isinstance(update, LowRank) else "stated",
        bias=None if update.bias is None else update.delta_bias(np.float32),
        is_bias_whole=update.bias is not None,
    )


def factors_of_site(adapter: Adapter, name: str) -> Pair:
    """ΔW = B A in float64, the scale in B; also where the factors of a structured update are wide.

    Raises:
        AdapterError: naming the file, site and tensor where a number is not finite, or where they have no room.
    """
    update = adapter[name]
    try:
        if isinstance(update, Expanded):
            B, A, scale = update.factors(np.float64, is_wide_allowed=True)
        else:
            B, A, scale = update.factors(np.float64)
    except AdapterError as error:
        error.file = error.file or (adapter.provenance.path and str(adapter.provenance.path))
        error.key = error.key or name
        raise
    with np.errstate(over="ignore", invalid="ignore"):
        B = B * scale
    check_range(B, A, adapter.provenance.path, name)
    return Pair(B, A)


def _allocation(adapter: Adapter, names: list[str], cut: Cut, budget: int) -> Allocation:
    spectra: dict[str, NDArray[np.float64]] = {}
    most: dict[str, int] = {}
    shapes = {name: adapter[name].shape for name in names}
    for name in names:
        svd, told = beyond_rounding(*factors_of_site(adapter, name))
        spectra[name] = svd.S[:told]
        most[name] = cut.of(spectra[name])
    if not any(most.values()):
        raise AdapterError("every ΔW is zero: there is nothing to keep", file=adapter.provenance.path)
    least = {name: 1 for name in names if adapter[name].bias is not None}
    return allocated(spectra, shapes, budget, least, most)


def _factor_dtype(update: Update) -> np.dtype[Any]:
    """The widest dtype of the stored factors."""
    if isinstance(update, Expanded):
        return update.factor_dtype
    kinds = [update.stored[role].dtype for role in ("B", "A") if role in update.stored]
    widest = max(kinds, key=lambda kind: kind.itemsize, default=np.dtype(np.float32))
    return np.dtype(np.float16) if widest.itemsize < 2 else widest


def _unchanged(adapter: Adapter, *, is_loss_allowed: bool) -> dict[str, Update]:
    """The sites that are not resized; refused where they have a rank that only the base weight lets one change."""
    found: dict[str, Update] = {}
    for name, update in adapter.items():
        is_unknown = -1 in update.shape or isinstance(update, Relative)
        if not is_unknown and not isinstance(update, Dense) and update.layer != "norm":
            continue
        if update.kind not in _RANKLESS and is_unknown and not is_loss_allowed:
            raise AdapterError(
                f"the ΔW of an update of the kind {update.kind} is known only beside the base: it cannot be cut",
                file=adapter.provenance.path,
                key=name,
                hint="--allow-loss leaves such sites as they are; or bake it into the base, and extract it again",
            )
        found[name] = update
    return found


def _refuse_unclear(adapter: Adapter, *, is_loss_allowed: bool) -> None:
    doubt = next((note for note in adapter.notes if note.is_doubt), None)
    if doubt is not None and not is_loss_allowed:
        raise AdapterError(
            "it is not certain what was trained, so it is not resized",
            file=adapter.provenance.path,
            key=doubt.site,
            found=doubt.text,
            hint="say it (a scale with --scale), or take it as it was read with --allow-loss",
        )
    if not adapter.provenance.is_relative_to_base:
        raise AdapterError(
            "its ΔW is relative to a base that its initialisation changed by its rank, which must stay",
            file=adapter.provenance.path,
            hint="convert it to plain LoRA first",
        )
