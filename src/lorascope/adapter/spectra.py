"""The singular values of every site of an adapter: sites of equal shape and rank together, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter.adapter import Adapter
from lorascope.adapter.low_rank import LowRank
from lorascope.adapter.update import Factors
from lorascope.errors import AdapterError

T = TypeVar("T")

_STACK = 1 << 22  # numbers of one factor that are stacked at a time: 32 MiB in float64


def singular_values(adapter: Adapter) -> dict[str, NDArray[np.float64]]:
    """Site → the min(out, in, rank) singular values of ΔW, descending, in float64.

    B = Q_B R_B and Aᵀ = Q_A R_A, so those of ΔW are those of the small core scale · R_B R_Aᵀ; plain low-rank sites of
    equal shape and rank are computed together. Sites whose values are not known, or cannot be had in bounded time,
    are left out.
    """
    groups: dict[tuple[tuple[int, int], int], list[str]] = {}
    result: dict[str, NDArray[np.float64]] = {}
    for name, update in adapter.items():
        if isinstance(update, LowRank):
            groups.setdefault((update.shape, update.rank), []).append(name)
        elif update.needs in ("nothing", "dense room") and (found := _spectrum(adapter, name)) is not None:
            result[name] = found
    for ((out, in_), rank), names in groups.items():
        step = max(_STACK // max(max(out, in_) * rank, 1), 1)
        for begin in range(0, len(names), step):
            chunk = names[begin : begin + step]
            factors = [_factors(adapter, name) for name in chunk]
            B = np.stack([factor.B for factor in factors])
            A = np.stack([factor.A for factor in factors])
            scales = np.array([factor.scale for factor in factors])
            result |= _named(adapter, chunk, B, A, scales)
    return {name: result[name] for name in adapter if name in result}


def _spectrum(adapter: Adapter, name: str) -> NDArray[np.float64] | None:
    try:
        return at_site(adapter, name, adapter[name].spectrum)
    except AdapterError as error:
        if error.code == "too-large":
            return None
        raise


def _named(
    adapter: Adapter, names: list[str], B: NDArray[Any], A: NDArray[Any], scales: NDArray[Any]
) -> dict[str, NDArray[np.float64]]:
    """The spectra of a stack of sites by name; where one is out of range, the error names its site."""
    try:
        return dict(zip(names, _spectra(B, A, scales), strict=True))
    except AdapterError:
        for index, name in enumerate(names):
            at_site(adapter, name, partial(_spectra, *(stack[index : index + 1] for stack in (B, A, scales))))
        raise


def _spectra(B: NDArray[Any], A: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.float64]:
    if B.shape[-1] == 0:
        return np.zeros((len(B), 0))
    left: Any = np.linalg.qr(B, mode="r")
    right: Any = np.linalg.qr(A.swapaxes(-1, -2), mode="r")
    with np.errstate(over="ignore", invalid="ignore"):
        core = scale[:, None, None] * (left @ right.swapaxes(-1, -2))
    if not np.isfinite(core).all():
        raise AdapterError("ΔW is beyond the range of float64", hint="the adapter diverged, or was made to deceive")
    values = np.asarray(np.linalg.svd(core, compute_uv=False), np.float64)
    if not np.isfinite(values).all() or not np.isfinite(values[..., :1] * math.sqrt(values.shape[-1])).all():
        raise AdapterError("ΔW is beyond the range of float64", hint="the adapter diverged, or was made to deceive")
    return values


def _factors(adapter: Adapter, name: str) -> Factors:
    return at_site(adapter, name, lambda: adapter[name].factors(np.float64))


def at_site(adapter: Adapter, name: str, compute: Callable[[], T]) -> T:
    """What ``compute`` gives, an error of it placed at the file and the site."""
    try:
        return compute()
    except AdapterError as error:
        error.file = error.file or (adapter.provenance.path and str(adapter.provenance.path))
        error.key = error.key or name
        raise
