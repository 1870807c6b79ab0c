"""The singular values of every site of an adapter: sites of equal shape and rank together, in float64.

The stored factors are rounded: a direction whose singular value is no larger than what rounding makes of zero says
nothing. With eps_B, eps_A the spacings of the stored dtypes, and float32 sums over the rank before,

    rounding = |scale| · ‖B‖₂ · ‖A‖₂ · (e + √rank · min(e, eps of float32))        e = (eps_B + eps_A)/2

Independent errors of relative size up to eps/2 (eps/√12 on average) make a matrix of spectral norm about
eps/√12 · (largest column + largest row), so that e alone is some four times what storing leaves behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple, TypeVar, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lorascope.adapter.adapter import Adapter
from lorascope.adapter.low_rank import LowRank
from lorascope.adapter.structured import dense_norm
from lorascope.errors import AdapterError

T = TypeVar("T")

_STACK = 1 << 22  # numbers of one factor that are stacked at a time: 32 MiB in float64


_EPS32 = float(np.finfo(np.float32).eps)


class Spectrum(NamedTuple):
    """The singular values of one ΔW, and what follows from them.

    Args:
        values: the min(out, in, rank) singular values, descending, in float64.
        norm: ‖ΔW‖_F, the root of their squares.
        effective_rank: how many of them are more than rounding: that of the stored factors, where ΔW is a product of
            two, else that of the computation.
    """

    values: NDArray[np.float64]
    norm: float
    effective_rank: int


def spectra_of(adapter: Adapter) -> dict[str, Spectrum]:
    """Site → the singular values of ΔW.

    B = Q_B R_B and Aᵀ = Q_A R_A, so those of ΔW are those of the small core scale · R_B R_Aᵀ; plain low-rank sites of
    equal shape and rank are computed together. Sites whose values are not known, or cannot be had in bounded time,
    are left out.
    """
    groups: dict[tuple[Any, ...], list[LowRank]] = {}
    names: dict[tuple[Any, ...], list[str]] = {}
    result: dict[str, Spectrum] = {}
    for name, update in adapter.items():
        if isinstance(update, LowRank):
            kind = update.B.shape, update.A.shape, update.B.dtype, update.A.dtype
            groups.setdefault(kind, []).append(update)
            names.setdefault(kind, []).append(name)
        elif update.needs in ("nothing", "dense room") and (found := _spectrum(adapter, name)) is not None:
            own = found[:1] * (max(update.shape) * np.finfo(np.float64).eps)
            result[name] = Spectrum(found, dense_norm(found), int((found > own).sum()))
    for kind, updates in groups.items():
        (out, rank), (_, in_), *_ = kind
        step = max(_STACK // max(max(out, in_) * rank, 1), 1)
        for begin in range(0, len(updates), step):
            chunk = slice(begin, begin + step)
            result |= _named(adapter, names[kind][chunk], updates[chunk])
    return {name: result[name] for name in adapter if name in result}


def _spectrum(adapter: Adapter, name: str) -> NDArray[np.float64] | None:
    def measured() -> NDArray[np.float64] | None:
        values = adapter[name].spectrum()
        if values is not None and not np.isfinite(values).all():
            raise _beyond_range()
        return values

    try:
        return at_site(adapter, name, measured)
    except AdapterError as error:
        if error.code == "too-large":
            return None
        raise


def _beyond_range() -> AdapterError:
    return AdapterError("ΔW is beyond the range of float64", hint="the adapter diverged, or was made to deceive")


@cache
def _eps(dtype: np.dtype[Any]) -> float:
    information = cast("Any", ml_dtypes).finfo(dtype)  # its annotations are not complete
    return float(information.eps)


def _named(adapter: Adapter, names: list[str], updates: list[LowRank]) -> dict[str, Spectrum]:
    """The spectra of alike sites by name; where one has none, the error names its site."""
    try:
        return dict(zip(names, _spectra(updates), strict=True))
    except AdapterError:
        for name, update in zip(names, updates, strict=True):
            at_site(adapter, name, partial(_spectra, [update]))
        raise


def _spectra(updates: list[LowRank]) -> list[Spectrum]:
    B, A = _widened(updates, "B"), _widened(updates, "A")
    scale = np.array([update.scale for update in updates])
    rank = B.shape[-1]
    if rank == 0:
        return [Spectrum(np.zeros(0), 0.0, 0)] * len(B)
    left: Any = np.linalg.qr(B, mode="r")
    right: Any = np.linalg.qr(A.swapaxes(-1, -2), mode="r")
    with np.errstate(over="ignore", invalid="ignore"):
        core = scale[:, None, None] * (left @ right.swapaxes(-1, -2))
    if not np.isfinite(core).all():
        raise _beyond_range()
    values = np.asarray(np.linalg.svd(core, compute_uv=False), np.float64)
    if not np.isfinite(values).all() or not np.isfinite(values[..., :1] * math.sqrt(values.shape[-1])).all():
        raise _beyond_range()
    e = (_eps(updates[0].B.dtype) + _eps(updates[0].A.dtype)) / 2
    unit = np.abs(scale) * (e + math.sqrt(rank) * min(e, _EPS32))
    own = values[:, 0] * max(B.shape[1], A.shape[2]) * np.finfo(np.float64).eps  # that of QR and SVD
    floors = np.maximum(_rounding(left, right, unit, values[:, -1]), own)
    ranks = (values > floors[:, None]).sum(axis=1)
    largest = values[:, :1] + (values[:, :1] == 0)  # squares of large values overflow
    norms = largest[:, 0] * np.sqrt(np.square(values / largest).sum(axis=1))
    return [Spectrum(*one) for one in zip(values, norms.tolist(), ranks.tolist(), strict=True)]


def _widened(updates: list[LowRank], role: Literal["B", "A"]) -> NDArray[np.float64]:
    """The factors of alike sites in one float64 array; where one is not finite, the error of that site."""
    with np.errstate(over="ignore", invalid="ignore"):
        stack = np.stack([update.B if role == "B" else update.A for update in updates]).astype(np.float64)
    if not np.isfinite(stack).all():
        for update in updates:
            update.factors(np.float64)
    return stack


def _rounding(
    left: NDArray[Any], right: NDArray[Any], unit: NDArray[Any], smallest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """unit · ‖B‖₂ · ‖A‖₂ from the triangles of both, where the smallest value may be below it, else 0."""
    with np.errstate(over="ignore"):
        bound = unit * np.linalg.norm(left, axis=(1, 2)) * np.linalg.norm(right, axis=(1, 2))  # Frobenius ≥ spectral
    floors = np.zeros(len(unit))
    small = np.flatnonzero(smallest <= bound)
    if small.size:
        norms = [np.linalg.svd(triangles[small], compute_uv=False)[:, 0] for triangles in (left, right)]
        floors[small] = unit[small] * norms[0] * norms[1]
    return floors


def at_site(adapter: Adapter, name: str, compute: Callable[[], T]) -> T:
    """What ``compute`` gives, an error of it placed at the file and the site."""
    try:
        return compute()
    except AdapterError as error:
        error.file = error.file or (adapter.provenance.path and str(adapter.provenance.path))
        error.key = error.key or name
        raise
