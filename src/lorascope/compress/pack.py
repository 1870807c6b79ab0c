"""A pack: many adapters of one base as shared bases and small cores, or each as its own balanced factors.

    joint, eigen   B_i A_i = ΔW_i ≈ (U L_i)(R_i Vᵀ),  L_i R_i = Uᵀ ΔW_i V balanced      U, V of the adapter's cluster
    diagonal       B_i A_i = (U diag(c_i)) Vᵀ
    alone          B_i A_i with B = P √S, A = √S Qᵀ of the thin SVD

A core whose two factors would have more numbers than itself is stored whole. All that is stored can be rounded to 8
or 4 bits (``quantise``). ``unpacked`` gives the update back as factors; the errors reported are those of these factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter, LowRank, Provenance, Update
from lorascope.adapter.update import Layer
from lorascope.compress.quantise import Quantised, quantised, restored, sizes
from lorascope.errors import AdapterError
from lorascope.formats.dtypes import cast_to

Method = Literal["joint", "eigen", "diagonal", "alone"]
Layout = Literal["stated", "open", "unknown", "fixed"]


@dataclass(frozen=True)
class PackSite:
    """A site: its name and what ``LowRank`` says of its layer."""

    name: str
    shape: tuple[int, int]
    layer: Layer = "linear"
    kernel: tuple[int, ...] = ()
    is_transposed: bool = False
    layout: Layout = "stated"

    @classmethod
    def of(cls, name: str, update: Update) -> PackSite:
        """The site of an update."""
        layout = update.layout if isinstance(update, LowRank) else "stated"
        return cls(name, update.shape, update.layer, update.kernel, update.is_transposed, layout)

    def update(self, B: NDArray[Any], A: NDArray[Any]) -> LowRank:
        """B A at this site."""
        return LowRank(
            np.ascontiguousarray(B),
            np.ascontiguousarray(A),
            layer=self.layer,
            kernel=self.kernel,
            is_transposed=self.is_transposed,
            layout=self.layout,
        )


@dataclass(frozen=True)
class PackMember:
    """An adapter: its name, the cluster whose bases it uses, and for each site the rank of its core (the
    width of a diagonal one), 0 for ΔW = 0."""

    name: str
    cluster: int
    ranks: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pack:
    """What a pack file holds.

    Args:
        method: how it was made.
        bits: of the codes, None where the numbers are floating ones.
        base_model: the name of the base, where one of the adapters stated it.
        sites: of any adapter.
        members: the adapters.
        widths: [cluster][site] (ku, kv) of the bases; empty for ``alone``.
        tensors: the stored numbers; ``names_of`` says under which names.
    """

    method: Method
    bits: int | None
    base_model: str | None
    sites: tuple[PackSite, ...]
    members: tuple[PackMember, ...]
    widths: tuple[tuple[tuple[int, int], ...], ...]
    tensors: Mapping[str, NDArray[Any]]

    def unpacked(self, number: int) -> Adapter:
        """The adapter of that number, its factors in float32.

        Raises:
            AdapterError: where a stored number is not finite.
        """
        member = self.members[number]
        matrices = iter(split(self._numbers(f"adapter.{number}", self.count(member)), self.shapes(member)))
        sites: dict[str, Update] = {}
        for place, site in enumerate(self.sites):
            rank = member.ranks[place]
            if not rank:
                continue
            B, width = next(matrices), self.width(member, place)
            is_diagonal = self.method == "diagonal"
            A = None if width and (is_diagonal or is_whole(rank, width)) else next(matrices)
            if width and is_diagonal:
                B, A = self._basis(member.cluster, place, "U") * B, self._basis(member.cluster, place, "V").T
            elif width:
                B = self._basis(member.cluster, place, "U") @ B
                right = self._basis(member.cluster, place, "V").T
                A = right if A is None else A @ right
            sites[site.name] = site.update(B, np.zeros((0, 0)) if A is None else A)
        if not sites:  # an adapter of zeros is one, and files have no adapters without sites
            out, in_ = self.sites[0].shape
            sites[self.sites[0].name] = self.sites[0].update(
                np.zeros((out, 1), np.float32), np.zeros((1, in_), np.float32)
            )
        return Adapter(sites, Provenance(base_model=self.base_model))

    def width(self, member: PackMember, place: int) -> tuple[int, int] | None:
        """(ku, kv) of the bases of an adapter at a site, None where it shares none."""
        return self.widths[member.cluster][place] if self.widths else None

    def shapes(self, member: PackMember) -> Iterator[tuple[int, int]]:
        """The shapes of the matrices that are stored of an adapter, in order."""
        for place, rank in enumerate(member.ranks):
            width = self.width(member, place)
            out, in_ = width or self.sites[place].shape
            if rank and width and self.method == "diagonal":
                yield 1, rank
            elif rank and width and is_whole(rank, width):
                yield out, in_
            elif rank:
                yield from ((out, rank), (rank, in_))

    def count(self, member: PackMember) -> list[int]:
        """How many numbers each matrix of an adapter has."""
        return [rows * columns for rows, columns in self.shapes(member)]

    def _basis(self, cluster: int, place: int, side: Literal["U", "V"]) -> NDArray[np.float32]:
        axis = 0 if side == "U" else 1
        shape = self.sites[place].shape[axis], self.widths[cluster][place][axis]
        name = f"basis.{cluster}.{place}.{side}"
        if name not in self._bases:
            self._bases[name] = self._numbers(name, [shape[0] * shape[1]]).reshape(shape)
        return self._bases[name]

    @cached_property
    def _bases(self) -> dict[str, NDArray[np.float32]]:
        """Those that were asked for: many adapters share them."""
        return {}

    def _numbers(self, name: str, counts: list[int]) -> NDArray[np.float32]:
        """The numbers of a tensor in float32; each of its matrices was rounded in blocks of its own."""
        try:
            if self.bits is None:
                values = self.tensors[name].astype(np.float32).reshape(-1)
                if not bool(np.isfinite(values).all()):
                    raise AdapterError("a stored number is not finite")
                return values
            codes, steps = self.tensors[name], self.tensors[f"{name}.steps"]
            parts: list[NDArray[np.float32]] = []
            for count in counts:
                taken, blocks = sizes(count, self.bits)
                parts.append(restored(Quantised(codes[:taken], steps[:blocks], count, self.bits)))
                codes, steps = codes[taken:], steps[blocks:]
            return np.concatenate(parts) if parts else np.zeros(0, np.float32)
        except AdapterError as error:
            error.key = error.key or name
            raise


def is_whole(rank: int, width: tuple[int, int]) -> bool:
    """Whether a core is stored as it is, since its factors would have as many numbers or more."""
    return rank * sum(width) >= width[0] * width[1]


def split(values: NDArray[Any], shapes: Iterator[tuple[int, int]]) -> Iterator[NDArray[Any]]:
    """Matrices that lie one after another."""
    at = 0
    for rows, columns in shapes:
        yield values[at : at + rows * columns].reshape(rows, columns)
        at += rows * columns


def stored(name: str, matrices: list[NDArray[Any]], bits: int | None, dtype: Any) -> dict[str, NDArray[Any]]:
    """The tensors for some matrices under one name, in a floating dtype or as codes with their steps."""
    if bits is None:
        flat = [cast_to(np.asarray(matrix).reshape(-1), dtype) for matrix in matrices]
        return {name: np.concatenate(flat) if flat else np.zeros(0, dtype)}
    codes = [quantised(matrix, bits) for matrix in matrices]
    kind = np.int8 if bits == 8 else np.uint8
    empty = Quantised(np.zeros(0, kind), np.zeros(0, np.float32), 0, bits)
    return {
        name: np.concatenate([one.codes for one in (*codes, empty)]),
        f"{name}.steps": np.concatenate([one.steps for one in (*codes, empty)]),
    }
