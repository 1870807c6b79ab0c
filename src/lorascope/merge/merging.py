"""``merge``: several adapters of one base as one adapter, by a method, with the error of what is written.

Site by site: the method gives the merged update, exactly or as rows; it is cut to the rank that is asked for; the
relative error is that of the factors, in the dtype that they are written in, against what the method gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, LowRank, Note, Provenance, Update
from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats.dtypes import cast_to, floating_dtype
from lorascope.merge.method import METHODS, Method, Parts, Product
from lorascope.merge.range_finder import low_rank
from lorascope.merge.weights import Weights
from lorascope.symmetry.common_sites import CommonSites, Pair, check_range
from lorascope.symmetry.cores import distance
from lorascope.symmetry.site_names import named_alike
from lorascope.symmetry.truncation import Cut, Truncated, beyond_rounding, truncated


@dataclass(frozen=True)
class SiteError:
    """What became of a site: its rank, ‖ΔW‖ of the exact result, and how far what is written is from it."""

    rank: int
    norm: float
    error: float

    @property
    def relative_error(self) -> float:
        """``error`` / ``norm``; 0 of a zero update."""
        return self.error / self.norm if self.norm > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Merged:
    """``adapter``: the result. ``sites``: what became of each. ``missing``: sites that an adapter did not have.

    ``left_out``: what the adapters have that no merge is defined for, and that the result does not have.
    """

    adapter: Adapter
    sites: Mapping[str, SiteError]
    missing: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...] = ()

    @property
    def relative_error(self) -> float:
        """Over all sites: √(Σ error²) / √(Σ norm²)."""
        norm = math.hypot(*(site.norm for site in self.sites.values()))
        return math.hypot(*(site.error for site in self.sites.values())) / norm if norm > 0 else 0.0


def merge(
    adapters: Sequence[Adapter],
    method: str | Method = "linear",
    *,
    weights: Sequence[float] | None = None,
    weights_for: Sequence[tuple[str, Sequence[float]]] = (),
    cut: Cut = Cut(),  # noqa: B008  # frozen
    seed: int = 0,
    dtype: DTypeLike = np.float32,
    names: Sequence[str] | None = None,
    is_any_base: bool = False,
    is_loss_allowed: bool = False,
    advance: Callable[[int], Any] | None = None,
) -> Merged:
    """Merge adapters.

    Ranks, scales and formats may differ; layers whose names differ in what a framework puts in front are one, under the
    name that the first adapter has. A site that an adapter does not have is zero there. Biases are summed with
    the weights where the method is a weighted sum. Saved tensors (heads, token rows) stay where all adapters have
    the same; otherwise no merge is defined for them.

    Args:
        adapters: of one base.
        method: the name of a method, or one with options.
        weights: [n]; by default the method's own.
        weights_for: (pattern, weights) for the sites that a shell pattern fits; the first that fits counts.
        cut: how much of each site's result is kept. A method whose result has full rank is cut to the sum of the
            adapters' ranks where nothing is asked for.
        seed: of what is random: dropped entries, the range finder.
        dtype: of the factors of the result.
        names: of the adapters, for messages.
        is_any_base: merge adapters that name different base models.
        is_loss_allowed: leave out saved tensors and biases that cannot be merged, instead of refusing.
        advance: called with the number of sites done.

    Raises:
        AdapterError: where the adapters do not fit together, a ΔW is not known without the base weight, or the result
            is too large to compute with or for the dtype.
        LorascopeError: for weights or a number of adapters that the method has no meaning for.

    >>> one = Adapter({"q": LowRank(np.eye(3, 1), np.eye(1, 3))})
    >>> two = Adapter({"q": LowRank(np.eye(3, 1, -1), np.eye(1, 3, 1))})
    >>> merged = merge([one, two], "linear", weights=[1, -2])
    >>> np.diag(merged.adapter["q"].delta_weight()).round(6), merged.relative_error < 1e-6
    (array([ 1., -2.,  0.], dtype=float32), True)
    """
    member: Method = METHODS[method]() if isinstance(method, str) else method
    if not adapters:
        raise LorascopeError("there is nothing to merge", expected="one or more adapters", found=0)
    member.check(len(adapters))
    common = CommonSites.of(named_alike(adapters), names, is_any_base=is_any_base)
    if not common.all:
        raise AdapterError("the adapters have no sites", file=common.names[0])
    if len(adapters) > 1 and not any(_sites_of_two(common)):
        raise AdapterError(
            "no two of the adapters have a site in common",
            file=common.names[0],
            expected="adapters of the same layers of one base",
            found=f"sites such as {common.all[0]} and {next(iter(common.adapters[1]), 'none')}",
        )
    member.check_sites(common.all)
    taken = Weights.of(
        len(adapters), member.default_weights(len(adapters)) if weights is None else weights, weights_for
    )
    if unused := taken.unused(common.all):
        raise LorascopeError(
            "no site fits the pattern", key=unused[0], expected=f"names such as {common.all[0]}", hint="quote patterns"
        )
    _refuse_unclear(common)
    stored = floating_dtype(dtype)
    leftovers, left_out = _saved(common, is_loss_allowed=is_loss_allowed)
    sites: dict[str, Update] = {}
    errors: dict[str, SiteError] = {}
    for site in common.all:
        update, errors[site] = _merged_site(common, site, member, taken.at(site), cut, seed, stored)
        bias, lost = _bias(common, site, member, taken.at(site), is_loss_allowed=is_loss_allowed)
        sites[site] = replace(update, bias=bias, is_bias_whole=bias is not None)
        left_out += lost
        if advance is not None:
            advance(1)
    missing = {name: own for name, own in zip(common.names, common.missing, strict=True) if own}
    first = adapters[0].provenance
    base_model = next((one.provenance.base_model for one in adapters if one.provenance.base_model), None)
    adapter = Adapter(
        sites,
        Provenance(base_model=base_model, base_config=first.base_config),
        leftovers=leftovers,
        notes=tuple(Note("merge-left-out", text) for text in left_out),
    )
    return Merged(adapter, errors, missing, tuple(left_out))


def _sites_of_two(common: CommonSites) -> list[bool]:
    return [sum(site in adapter for adapter in common.adapters) > 1 for site in common.all]


def _merged_site(
    common: CommonSites, site: str, member: Method, weights: NDArray[np.float64], cut: Cut, seed: int, dtype: Any
) -> tuple[LowRank, SiteError]:
    """The update of a site in the dtype of the result, and its error against what the method gave.

    In float64 all the way: products of few columns cost little, and then the error is that of the cut and of the dtype.
    """
    parts = Parts(site, common.pairs(site, np.float64), weights, seed)
    for pair, weight, name in zip(parts.pairs, weights.tolist(), common.names, strict=True):
        check_range(*pair, name, site, max(1.0, abs(weight)))
    with np.errstate(over="ignore", invalid="ignore"):  # what an option makes too large is refused below
        result = member(parts)
    example = common.example(site)
    if isinstance(result, Product):
        check_range(result.B, result.A, "the merged update", site)
        done = cut_product(result, cut)
    else:
        ranks = sum(rank_of(pair) for pair in parts.pairs)
        try:
            done = low_rank(result, cut, max(1, ranks), parts.generator(len(parts.pairs)))
        except AdapterError as error:
            error.key = error.key or site
            raise
    try:
        B, A = cast_to(done.B, dtype), cast_to(done.A, dtype)
    except AdapterError as error:
        error.key = error.key or site
        error.hint = error.hint or "take a wider one, such as bfloat16 or float32, or smaller weights"
        raise
    update = LowRank(
        B,
        A,
        layer=example.layer,
        kernel=example.kernel,
        is_transposed=example.is_transposed,
        layout=example.layout if isinstance(example, LowRank) else "stated",
    )
    written = (update.B.astype(np.float64), update.A.astype(np.float64))
    rounding = float(distance(*written, done.B.astype(np.float64), done.A.astype(np.float64)))
    return update, SiteError(update.rank, done.norm, math.hypot(done.error, rounding))


def cut_product(product: Product | Pair, cut: Cut) -> Truncated:
    """The best part of a product that the cut allows, balanced; nothing but rounding is lost where it asks nothing.

    A product of which nothing is left beyond rounding, as where updates cancel, is zero: rank 1, norm and error 0.
    """
    out, in_ = product.B.shape[0], product.A.shape[1]
    svd, rank = beyond_rounding(product.B, product.A)
    if rank == 0:
        return Truncated(np.zeros((out, 1), product.B.dtype), np.zeros((1, in_), product.A.dtype), 0.0, 0.0)
    return truncated(svd, cut.of(np.where(np.arange(len(svd.S)) < rank, svd.S, 0.0)))


def rank_of(product: Product | Pair) -> int:
    """How many directions a product has beyond rounding: neither padding of the factors nor their gauge counts."""
    return beyond_rounding(product.B, product.A)[1]


def _refuse_unclear(common: CommonSites) -> None:
    """Refuse what may be another update than was trained, or is not relative to the published base."""
    for adapter, name in zip(common.adapters, common.names, strict=True):
        doubt = next((note for note in adapter.notes if note.is_doubt), None)
        if doubt is not None:
            raise AdapterError(
                "it is not certain what was trained, so nothing is merged of it",
                file=name,
                key=doubt.site,
                found=doubt.text,
                hint="convert it first, saying what it is (`lorascope convert --scale …`)",
            )
        if not adapter.provenance.is_relative_to_base:
            raise AdapterError(
                "its ΔW is relative to a base whose weights its initialisation changed",
                file=name,
                hint="convert it to plain LoRA first",
            )


def _saved(common: CommonSites, *, is_loss_allowed: bool) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """The saved tensors that all adapters have alike, and in words those that they have not."""
    kept: dict[str, NDArray[Any]] = {}
    left_out: list[str] = []
    for key in dict.fromkeys(key for adapter in common.adapters for key in adapter.leftovers):
        owners = [(one, name) for one, name in zip(common.adapters, common.names, strict=True) if key in one.leftovers]
        first = np.asarray(owners[0][0].leftovers[key])
        others = [np.asarray(one.leftovers[key]) for one, _ in owners]
        is_alike = len(owners) == len(common.adapters) and all(
            other.dtype == first.dtype and other.shape == first.shape and other.tobytes() == first.tobytes()
            for other in others
        )
        if is_alike:
            kept[key] = first
        elif is_loss_allowed:
            left_out.append(f"{key}, which the adapters save differently")
        else:
            raise AdapterError(
                "a tensor that is saved whole is not the same in all adapters, and no merge is defined for it",
                file=owners[0][1],
                key=key,
                hint="--allow-loss leaves it out",
            )
    return kept, left_out


def _bias(
    common: CommonSites, site: str, member: Method, weights: NDArray[np.float64], *, is_loss_allowed: bool
) -> tuple[NDArray[Any] | None, list[str]]:
    """Σ of the changes of the bias with the weights that the method gives the updates."""
    deltas = [adapter[site].delta_bias(np.float64) if site in adapter else None for adapter in common.adapters]
    if all(delta is None for delta in deltas):
        return None, []
    factors = member.bias_weights(weights)
    if factors is None:
        if is_loss_allowed:
            return None, [f"the bias of {site}"]
        raise AdapterError(
            f"{member.name} does not say what becomes of a change of the bias",
            file=common.names[0],
            key=site,
            hint="--allow-loss leaves it out",
        )
    pairs = zip(factors, deltas, strict=True)
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum([factor * delta for factor, delta in pairs if delta is not None], axis=0)
    if not float(np.abs(total).max(initial=0.0)) <= float(np.finfo(np.float32).max):
        raise AdapterError("the merged change of the bias is too large for float32", file=common.names[0], key=site)
    return total.astype(np.float32), []
