"""Adapters of like structure as stacks of arrays: the form in which everything above computes.

Sites of equal (out, in) go into one stack with axes [adapters, sites]; ranks are padded with zeros to the
largest, and to 1 where all are 0, which changes no result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, Factors, LowRank, Update
from lorascope.adapter.widening import converted
from lorascope.errors import AdapterError
from lorascope.symmetry.arrays import Array
from lorascope.symmetry.canonical import SVD, thin_svd


@dataclass(frozen=True, eq=False)
class SiteStack:
    """The sites of one shape of one or more adapters.

    ``names``: the S sites; ``B`` [N, S, out, rank]; ``A`` [N, S, rank, in], scale folded into B.
    """

    names: tuple[str, ...]
    B: Array
    A: Array
    cache: dict[Any, Array] = field(default_factory=dict[Any, Array], repr=False)
    """What features have computed of the stack and share; it goes when the stack goes."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of every site."""
        return int(self.B.shape[-2]), int(self.A.shape[-1])

    @cached_property
    def svd(self) -> SVD:
        """The thin SVD of every site, computed once."""
        return thin_svd(self.B, self.A)


def stack_adapters(
    adapters: Sequence[Adapter], *, sites: Sequence[str] | None = None, dtype: DTypeLike = np.float64
) -> list[SiteStack]:
    """The adapters as one stack per (out, in), in the order in which the shapes first occur.

    Args:
        adapters: all with the same sites and shapes; ranks may differ.
        sites: which sites, and in which order; by default those of the first adapter.
        dtype: the floating dtype of the arrays.

    Raises:
        AdapterError: where an adapter lacks a site, has it in another shape, or is too large for the dtype.

    >>> import numpy as np
    >>> from lorascope.adapter import Adapter, LowRank
    >>> one = Adapter({"q": LowRank(np.ones((4, 2)), np.ones((2, 3)))})
    >>> two = Adapter({"q": LowRank(np.ones((4, 1)), np.ones((1, 3)))})
    >>> [stack] = stack_adapters([one, two])
    >>> stack.B.shape, stack.A.shape
    ((2, 1, 4, 2), (2, 1, 2, 3))
    """
    names = list(sites if sites is not None else adapters[0])
    shapes: dict[tuple[int, int], list[str]] = {}
    for name in names:
        shapes.setdefault(site_of(adapters[0], name).shape, []).append(name)
    return [_stack(adapters, group, shape, dtype) for shape, group in shapes.items()]


def site_of(adapter: Adapter, name: str) -> Update:
    """The update of a site, or an error that says which site is missing."""
    if name not in adapter:
        raise AdapterError(
            "the adapter lacks a site",
            file=adapter.provenance.path,
            key=name,
            found=f"{len(adapter)} other sites",
            hint="adapters that are computed with together must adapt the same layers of the same base",
        )
    return adapter[name]


def _stack(adapters: Sequence[Adapter], names: list[str], shape: tuple[int, int], dtype: DTypeLike) -> SiteStack:
    """Factors that are stored alike are converted and scaled in one call: small ones cost less than a call for each."""
    stored = [_stored(adapter, name, shape, dtype) for adapter in adapters for name in names]
    alike: dict[tuple[Any, ...], list[int]] = {}
    for place, one in enumerate(stored):
        alike.setdefault((one.B.shape[1], one.B.dtype, one.A.dtype), []).append(place)
    largest = max(1, *(rank for rank, *_ in alike))
    B = np.zeros((len(stored), shape[0], largest), dtype)
    A = np.zeros((len(stored), largest, shape[1]), dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # what does not become a finite number is refused below
        for (rank, *_), places in alike.items():
            lefts, rights = [stored[place].B for place in places], [stored[place].A for place in places]
            B[places, :, :rank] = converted(np.concatenate(lefts), B.dtype).reshape(len(places), shape[0], rank)
            A[places, :rank] = converted(np.concatenate(rights), A.dtype).reshape(len(places), rank, shape[1])
        np.multiply(B, np.asarray([one.scale for one in stored], dtype)[:, None, None], out=B)
    left, right = (whole.reshape(len(adapters), len(names), *whole.shape[1:]) for whole in (B, A))
    _check_numbers(adapters, names, left, right)
    return SiteStack(tuple(names), left, right)


def _stored(adapter: Adapter, name: str, shape: tuple[int, int], dtype: DTypeLike) -> LowRank | Factors:
    """B, A and scale of a site as they are in the file, in ``dtype`` where they first have to be worked out."""
    update = site_of(adapter, name)
    if update.shape != shape:
        raise AdapterError(
            "a site has another shape than in the other adapters",
            file=adapter.provenance.path,
            key=name,
            expected=list(shape),
            found=list(update.shape),
        )
    return update if isinstance(update, LowRank) else factors_of(adapter, name, dtype)


def _check_numbers(adapters: Sequence[Adapter], names: list[str], B: NDArray[Any], A: NDArray[Any]) -> None:
    """Refuse what is not finite, and an update whose norm has no square in the dtype: no result would be exact."""
    limit = largest_product(B.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        left, right = largest_entries(B), largest_entries(A)
        bad = np.argwhere(~(left * right < limit))
    if len(bad):
        i, j = int(bad[0, 0]), int(bad[0, 1])
        factors_of(adapters[i], names[j], B.dtype)  # names the tensor where a number in it is not finite
        raise AdapterError(
            "the update is too large to compute with",
            file=adapters[i].provenance.path,
            key=names[j],
            expected=f"scale · max|B| · max|A| below {limit:.0e}",
            found=f"{left[i, j]:.3g} · {right[i, j]:.3g}",
        )


def largest_product(dtype: DTypeLike) -> float:
    """What scale · max|B| · max|A| has to be below, so that the norm of an update has a square in the dtype."""
    return float(np.finfo(dtype).max) ** 0.49


def largest_entries(X: NDArray[Any]) -> NDArray[Any]:
    """The largest absolute value of each matrix, without a copy of them all."""
    return np.maximum(X.max(axis=(-2, -1), initial=0.0), -X.min(axis=(-2, -1), initial=0.0))


def factors_of(adapter: Adapter, name: str, dtype: DTypeLike) -> Factors:
    """B, A and scale of a site in ``dtype``.

    Raises:
        AdapterError: where a number is not finite, naming the tensor and the file.
    """
    try:
        return adapter[name].factors(dtype)
    except AdapterError as error:
        error.file = error.file or (adapter.provenance.path and str(adapter.provenance.path))
        raise


def gauged(adapter: Adapter, gauge: Callable[[int], Array], *, dtype: DTypeLike = np.float64) -> Adapter:
    """The same finetune in another gauge: every site acted on by ``gauge(rank)``, factors stored in
    ``dtype``.

    >>> import numpy as np
    >>> from lorascope.adapter import Adapter, LowRank
    >>> adapter = Adapter({"q": LowRank(np.ones((4, 2)), np.ones((2, 3)))})
    >>> doubled = gauged(adapter, lambda rank: 2 * np.eye(rank))
    >>> float(doubled["q"].factors().A[0, 0]), bool(np.isclose(doubled.norm(), adapter.norm()))
    (2.0, True)
    """
    from lorascope.symmetry.gauge import act

    def turned(B: Array, A: Array) -> tuple[Array, Array]:
        one, other = act(gauge(B.shape[-1]), B, A)
        return one.astype(dtype), other.astype(dtype)

    return refactored(adapter, turned)


def refactored(adapter: Adapter, change: Callable[[Array, Array], tuple[Array, Array]]) -> Adapter:
    """The adapter with other factors at every site: ``change`` takes B [out, rank] and A [rank, in] in float64, without
    the scale, which stays.

    >>> import numpy as np
    >>> from lorascope.adapter import Adapter, LowRank
    >>> adapter = Adapter({"q": LowRank(np.ones((4, 2)), np.ones((2, 3)), scale=3.0)})
    >>> one = refactored(adapter, lambda B, A: (B[:, :1], A[:1]))
    >>> one["q"].rank, one["q"].factors().scale
    (1, 3.0)
    """
    sites: dict[str, Update] = {}
    for name, update in adapter.items():
        factors = factors_of(adapter, name, np.float64)
        B, A = change(factors.B, factors.A)
        sites[name] = LowRank(
            B,
            A,
            factors.scale,
            layer=update.layer,
            kernel=update.kernel,
            is_transposed=update.is_transposed,
            alpha=update.alpha,
            bias=update.bias,
            layout=update.layout if isinstance(update, LowRank) else "stated",
            is_bias_whole=update.is_bias_whole,
        )
    return adapter.with_sites(sites)
