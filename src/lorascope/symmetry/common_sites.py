"""Adapters side by side: which sites they share, and the factors of a site in all of them.

A site that an adapter does not have is ΔW = 0 there, exactly. What cannot be computed with is refused: another shape
at the same site, a ΔW that only the base weight tells (DoRA, OFT, IA3), names of two base models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, Update
from lorascope.errors import AdapterError
from lorascope.symmetry.stack import factors_of, largest_product


class Pair(NamedTuple):
    """ΔW = B A of one adapter at one site, the scale folded into B: B [out, rank], A [rank, in]."""

    B: NDArray[Any]
    A: NDArray[Any]


@dataclass(frozen=True, eq=False)
class CommonSites:
    """Adapters of one base, in order. ``names`` are what they are called in messages.

    >>> from lorascope.adapter import LowRank
    >>> one = Adapter({"q": LowRank(np.ones((4, 2)), np.ones((2, 3)))})
    >>> two = Adapter({"q": LowRank(np.ones((4, 1)), np.ones((1, 3))), "k": LowRank(np.ones((4, 1)), np.ones((1, 3)))})
    >>> sites = CommonSites.of([one, two])
    >>> sites.shared, sites.missing
    (('q',), (('k',), ()))
    >>> [pair.B.shape for pair in sites.pairs("k")]
    [(4, 0), (4, 1)]
    """

    adapters: tuple[Adapter, ...]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, adapters: Sequence[Adapter], names: Sequence[str] | None = None, *, is_any_base: bool = False
    ) -> CommonSites:
        """Check that the adapters can be of one base.

        Args:
            adapters: one or more.
            names: of the adapters; by default their paths or numbers.
            is_any_base: go on where they name different base models.

        Raises:
            AdapterError: where a site has two shapes, or base models of two names are stated.
        """
        if names is None:
            names = [str(one.provenance.path or f"adapter {number}") for number, one in enumerate(adapters, 1)]
        if not is_any_base:
            _refuse_other_bases(adapters, names)
        first: dict[str, tuple[Update, str]] = {}
        for adapter, name in zip(adapters, names, strict=True):
            for site, update in adapter.items():
                other, owner = first.setdefault(site, (update, name))
                if (other.shape, other.kernel) != (update.shape, update.kernel):
                    raise AdapterError(
                        "a site has another shape than in the other adapter: they are not of one base model",
                        file=name,
                        key=site,
                        expected=f"{_shape(other)}, as in {owner}",
                        found=_shape(update),
                    )
        return cls(tuple(adapters), tuple(names))

    @cached_property
    def all(self) -> tuple[str, ...]:
        """Every site of any adapter, in the order in which they first occur."""
        return tuple(dict.fromkeys(site for adapter in self.adapters for site in adapter))

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """The sites that every adapter has."""
        return tuple(site for site in self.all if all(site in adapter for adapter in self.adapters))

    @cached_property
    def missing(self) -> tuple[tuple[str, ...], ...]:
        """For each adapter, the sites of others that it does not have."""
        return tuple(tuple(site for site in self.all if site not in adapter) for adapter in self.adapters)

    def example(self, site: str) -> Update:
        """The update of the first adapter that has the site: for its shape and layer."""
        return next(adapter[site] for adapter in self.adapters if site in adapter)

    def pairs(self, site: str, dtype: DTypeLike = np.float32) -> list[Pair]:
        """The factors of the site in each adapter; of rank 0 where it has none.

        Raises:
            AdapterError: where ΔW depends on the base weight, has no room as factors, or is not finite.
        """
        out, in_ = self.example(site).shape
        found: list[Pair] = []
        for adapter, name in zip(self.adapters, self.names, strict=True):
            if site not in adapter:
                found.append(Pair(np.zeros((out, 0), dtype), np.zeros((0, in_), dtype)))
                continue
            try:
                B, A, scale = factors_of(adapter, site, dtype)
            except AdapterError as error:
                error.file, error.key = error.file or name, error.key or site
                raise
            found.append(Pair(B * np.asarray(scale, B.dtype), A))
        return found


def check_range(B: NDArray[Any], A: NDArray[Any], file: object, site: str, factor: float = 1.0) -> None:
    """Check that the squares of ΔW, times a factor, have room in float64.

    Raises:
        AdapterError: naming the file and the site.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        largest = factor * float(np.abs(B).max(initial=0.0)) * float(np.abs(A).max(initial=0.0))
    if not largest < largest_product(np.float64):
        raise AdapterError(
            "the update is too large to compute with",
            file=file,
            key=site,
            expected=f"scale · max|B| · max|A| below {largest_product(np.float64):.0e}",
            found=f"{largest:.3g}",
        )


def _shape(update: Update) -> str:
    return str(list(update.shape)) + (f" of kernel {list(update.kernel)}" if update.kernel else "")


def _refuse_other_bases(adapters: Sequence[Adapter], names: Sequence[str]) -> None:
    """Base models are told apart by the last part of their name: folders and owners differ from machine to machine."""
    stated = [
        (_plain(one.provenance.base_model), one.provenance.base_model, name)
        for one, name in zip(adapters, names, strict=True)
        if one.provenance.base_model
    ]
    for plain, base, name in stated[1:]:
        if plain != stated[0][0]:
            raise AdapterError(
                "the adapters were made for different base models",
                file=name,
                expected=f"{stated[0][1]}, as {stated[0][2]} says",
                found=base,
                hint="where both names mean the same weights: --any-base",
            )


def _plain(base: str | None) -> str:
    return re.sub(r"[^a-z0-9]", "", re.split(r"[/\\]", (base or "").rstrip("/\\"))[-1].lower())
