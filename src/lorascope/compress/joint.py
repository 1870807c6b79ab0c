"""``compress``: adapters of one base → a pack, and how far each is from what it was.

Two passes over the sites, one site of all adapters in memory: norms and clusters, then bases, cores and errors. The
errors are measured on what ``decompress`` gives back, float32 factors from the stored numbers, by QR of both side by
side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter
from lorascope.compress.clusters import clustered
from lorascope.compress.diagonal import diagonal_factors
from lorascope.compress.names import told_apart
from lorascope.compress.pack import Method, Pack, PackMember, PackSite, is_whole, stored
from lorascope.compress.shared_bases import Bases, shared_bases
from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats.dtypes import floating_dtype
from lorascope.symmetry.common_sites import CommonSites, Pair, check_range
from lorascope.symmetry.cores import distance, norm
from lorascope.symmetry.site_names import named_alike
from lorascope.symmetry.truncation import Cut, beyond_rounding, truncated

METHODS: tuple[Method, ...] = ("joint", "eigen", "diagonal", "alone")

POOR = 0.5
"""Mean relative error beyond which little is left of the adapters: zeros in their place have 1."""


@dataclass(frozen=True)
class MemberError:
    """‖ΔW‖_F of an adapter over all sites, and ‖ΔW' − ΔW‖_F of what the pack gives back."""

    norm: float
    error: float

    @property
    def relative_error(self) -> float:
        """``error`` / ``norm``; 0 of a zero adapter."""
        return self.error / self.norm if self.norm > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Compressed:
    """``pack``: the result. ``errors``: name → how far that adapter is from what it was.

    ``nbytes_before``: of the stored tensors of all adapters. ``left_out``: what a pack has no place for.
    """

    pack: Pack
    errors: Mapping[str, MemberError]
    nbytes_before: int
    left_out: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Of the tensors of the pack; its header comes on top."""
        return sum(tensor.nbytes for tensor in self.pack.tensors.values())

    @property
    def mean_error(self) -> float:
        """The mean of the relative errors of all adapters."""
        return math.fsum(one.relative_error for one in self.errors.values()) / len(self.errors)

    @property
    def is_poor(self) -> bool:
        """Whether the pack is hardly worth having: its mean error is above ``POOR``, or it is larger than the input."""
        return self.mean_error > POOR or self.nbytes > self.nbytes_before

    @property
    def worst(self) -> tuple[str, float]:
        """The adapter that moved most, relatively, and by how much."""
        name = max(self.errors, key=lambda name: self.errors[name].relative_error)
        return name, self.errors[name].relative_error


def compress(
    adapters: Sequence[Adapter],
    names: Sequence[str] | None = None,
    *,
    method: Method = "joint",
    rank: int | None = None,
    clusters: int = 1,
    bits: int | None = None,
    dtype: DTypeLike = np.float32,
    seed: int = 0,
    is_any_base: bool = False,
    is_loss_allowed: bool = False,
    advance: Callable[[int], Any] | None = None,
) -> Compressed:
    """Pack adapters of one base.

    Args:
        adapters: one or more; ranks, scales, formats and sites may differ.
        names: of the adapters; made fit for file names, and told apart where two are alike.
        method: "joint", "eigen" and "diagonal" (cores of one number for each direction) share bases, "alone" keeps each
            adapter's own balanced factors.
        rank: the width of the bases, by default 16; of "alone" the largest rank, by default that of the adapter.
        clusters: how many sets of bases; each adapter uses one.
        bits: 8 or 4, to round what is stored to codes; None keeps floating numbers.
        dtype: of the floating numbers, where ``bits`` is None.
        seed: of the start of the clusters.
        is_any_base: pack adapters that name different base models.
        is_loss_allowed: leave out saved tensors and changes of biases instead of refusing.
        advance: called with the number of sites done.

    Raises:
        AdapterError: where the adapters are not of one base, or a ΔW is not known or not finite.
        LorascopeError: for options that have no meaning.

    >>> from lorascope.adapter import LowRank
    >>> B = np.eye(6, 2)
    >>> some = [Adapter({"q": LowRank(B, np.eye(2, 5, shift))}) for shift in (0, 1)]
    >>> packed = compress(some, ["a", "b"], rank=3)
    >>> packed.mean_error < 1e-6, packed.pack.unpacked(1)["q"].shape
    (True, (6, 5))
    """
    if not adapters:
        raise LorascopeError("there is nothing to compress", expected="one or more adapters", found=0)
    if method not in METHODS:
        raise LorascopeError("no such method", key="method", expected=", ".join(METHODS), found=method)
    for key, value in (("rank", rank), ("clusters", clusters)):
        if value is not None and value < 1:
            raise LorascopeError("not a number of at least 1", key=key, found=value)
    kind = floating_dtype(dtype)
    if kind.itemsize < 2:
        raise LorascopeError("no dtype for a pack", key="dtype", found=kind.name, hint="--quantise int8 has eight bits")
    common = CommonSites.of(named_alike(adapters), names, is_any_base=is_any_base)
    if not common.all:
        raise AdapterError("the adapters have no sites", file=common.names[0])
    left_out = _left_out(common, is_loss_allowed=is_loss_allowed)
    norms = _norms(common)
    smallest = float(np.finfo(np.float64).tiny)  # below it 1 / ‖ΔW‖ has no room
    weights = np.array([1.0 / own if own >= smallest else 0.0 for own in norms])
    numbers = np.zeros(len(adapters), np.intp)
    width = rank or 16
    if method != "alone" and clusters > 1:
        numbers = clustered(common.all, lambda site: common.pairs(site, np.float64), weights, width, clusters, seed)
    tensors: dict[str, NDArray[Any]] = {}
    widths: list[list[tuple[int, int]]] = [[] for _ in range(int(numbers.max()) + 1)]
    ranks: list[list[int]] = [[] for _ in adapters]
    parts: list[list[NDArray[Any]]] = [[] for _ in adapters]
    for place, site in enumerate(common.all):
        pairs = common.pairs(site, np.float64)
        bases: list[Bases] = []
        cores: dict[int, NDArray[Any]] = {}
        if method != "alone":
            for number, own in enumerate(widths):
                members = np.flatnonzero(numbers == number)
                some = [pairs[int(member)] for member in members]
                found, diagonals = _shared(some, weights[members], width, method)
                cores |= dict(zip(members.tolist(), diagonals, strict=False))
                bases.append(found)
                own.append((found.U.shape[1], found.V.shape[1]))
                tensors |= stored(f"basis.{number}.{place}.U", [found.U], bits, kind)
                tensors |= stored(f"basis.{number}.{place}.V", [found.V], bits, kind)
        for at, pair in enumerate(pairs):
            if method == "diagonal":
                own_rank, matrices = (cores[at].size, [cores[at]]) if cores[at].any() else (0, [])
            else:
                own_rank, matrices = _parts(pair, bases[numbers[at]] if bases else None, None if bases else rank)
            ranks[at].append(own_rank)
            parts[at] += matrices
        if advance is not None:
            advance(1)
    for at, matrices in enumerate(parts):
        tensors |= stored(f"adapter.{at}", matrices, bits, kind)
    plain = told_apart(common.names)
    pack = Pack(
        method,
        bits,
        next((one.provenance.base_model for one in adapters if one.provenance.base_model), None),
        tuple(PackSite.of(site, common.example(site)) for site in common.all),
        tuple(PackMember(plain[at], int(numbers[at]), tuple(ranks[at])) for at in range(len(adapters))),
        () if method == "alone" else tuple(tuple(own) for own in widths),
        tensors,
    )
    before = sum(
        tensor.nbytes for one in adapters for update in one.values() for tensor in dict(update.stored).values()
    )
    return Compressed(pack, _errors(common, pack, norms), before, tuple(left_out))


def _shared(
    pairs: Sequence[Pair], weights: NDArray[np.float64], width: int, method: Method
) -> tuple[Bases, Sequence[NDArray[Any]]]:
    """The bases of a cluster at a site, and the diagonal cores of its adapters, none for other methods."""
    if method == "diagonal":
        U, V, c = diagonal_factors(pairs, weights, width)
        return Bases(U, V), list(c)
    return shared_bases(pairs, weights, width, "eigen" if method == "eigen" else "joint"), ()


def _parts(pair: Pair, bases: Bases | None, rank: int | None) -> tuple[int, list[NDArray[Any]]]:
    """The rank of a core, or of ΔW, and the matrices that are stored of it: balanced factors, or the core whole."""
    if pair.B.shape[1] == 0:
        return 0, []
    core = pair if bases is None else bases.core(pair)
    svd, told = beyond_rounding(core.B, core.A)
    kept = Cut(rank=rank).of(svd.S[:told])
    if not kept:
        return 0, []
    if bases is not None and is_whole(kept, (bases.U.shape[1], bases.V.shape[1])):
        return kept, [core.B @ core.A]
    done = truncated(svd, kept)
    return kept, [done.B, done.A]


def _norms(common: CommonSites) -> list[float]:
    """‖ΔW‖_F of each adapter; what is not finite is refused by name."""
    squares: list[list[float]] = [[] for _ in common.adapters]
    for site in common.all:
        for own, name, pair in zip(squares, common.names, common.pairs(site, np.float64), strict=True):
            check_range(pair.B, pair.A, name, site)
            own.append(float(norm(pair.B, pair.A)) if pair.B.shape[1] else 0.0)
    return [math.hypot(*own) for own in squares]


def _errors(common: CommonSites, pack: Pack, norms: Sequence[float]) -> dict[str, MemberError]:
    found: dict[str, MemberError] = {}
    for at, (member, whole) in enumerate(zip(pack.members, norms, strict=True)):
        back = pack.unpacked(at)
        alone = replace(common, adapters=(common.adapters[at],), names=(common.names[at],))
        errors: list[float] = []
        for site in common.adapters[at]:
            pair = alone.pairs(site, np.float64)[0]
            if site in back:
                B, A, _ = back[site].factors(np.float64)
                errors.append(float(distance(pair.B, pair.A, B, A)))
            elif pair.B.shape[1]:
                errors.append(float(norm(pair.B, pair.A)))
        found[member.name] = MemberError(whole, math.hypot(*errors))
    return found


def _left_out(common: CommonSites, *, is_loss_allowed: bool) -> list[str]:
    """In words, what a pack has no place for; refused where losses are not allowed."""
    found: list[str] = []
    for adapter, name in zip(common.adapters, common.names, strict=True):
        doubt = next((note for note in adapter.notes if note.is_doubt), None)
        what = [f"the tensor {key}" for key in adapter.leftovers]
        what += [f"the change of the bias at {site}" for site, update in adapter.items() if update.bias is not None]
        if doubt is not None and not is_loss_allowed:
            raise AdapterError("it is not certain what was trained", file=name, key=doubt.site, found=doubt.text)
        if not adapter.provenance.is_relative_to_base:
            raise AdapterError("its ΔW is relative to a base whose weights its initialisation changed", file=name)
        if what and not is_loss_allowed:
            raise AdapterError(
                "a pack has no place for tensors that are saved whole, nor for changes of biases",
                file=name,
                found=f"{what[0]}" + (f" and {len(what) - 1} more" if len(what) > 1 else ""),
                hint="--allow-loss leaves them out",
            )
        found += [f"{one} of {name}" for one in what]
    return found
