"""What a conversion kept, dropped and lost, and by how much ΔW moved.

relative_error = ‖ΔW' − ΔW‖_F / ‖ΔW‖_F      per site and over all sites, measured on the file that was written
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Relative, Update
from lorascope.adapter.low_rank import product_norm
from lorascope.adapter.rows import row_blocks
from lorascope.adapter.structured import dense_norm
from lorascope.errors import AdapterError
from lorascope.formats.parametrisations.dora import DoRA
from lorascope.symmetry import distance

_FACTS = {"stored", "keys", "alpha", "bias", "is_bias_whole", "scalar"}  # of the tensors and names, or not of ΔW


@dataclass(frozen=True)
class Loss:
    """Something of the source that is not in the result: ``what`` (a site, a tensor, a field) and ``why``.

    ``is_replaced``: nothing is missing, since the result says the same in its own words.
    """

    what: str
    why: str
    is_replaced: bool = False


@dataclass(frozen=True)
class LossReport:
    """What happened in a conversion.

    Args:
        source, target: the paths.
        source_format, target_format: the names of the formats.
        is_identical: whether every tensor was written bit for bit under its own name.
        sites: how many sites the result has.
        expanded: sites whose structure was worked out to plain factors, exactly but for rounding.
        folded: sites whose scale the target does not state, or states otherwise: it was multiplied into a factor.
        dropped: bookkeeping that the target has no place for (metadata, fields of the configuration).
        lost: what changes the finetune or the file's tensors; only with ``is_loss_allowed``.
        relative_error: over all sites that both files have and whose ΔW is known without the base.
        worst_site, worst_error: the site that moved most, relatively.
    """

    source: str
    target: str
    source_format: str
    target_format: str
    is_identical: bool
    sites: int
    expanded: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    dropped: tuple[Loss, ...] = ()
    lost: tuple[Loss, ...] = ()
    relative_error: float = 0.0
    worst_site: str | None = None
    worst_error: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {"schema_version": 1, **asdict(self)}


def error_of(before: Update, after: Update) -> tuple[float, float]:
    """As ``_error_of_weights``, with the change of the bias counted in.

    Raises:
        AdapterError: where the shapes differ, or only one of them is relative to the base.
    """
    error, norm = _error_of_weights(before, after)
    one, two = before.delta_bias(np.float64), after.delta_bias(np.float64)
    if one is None and two is None:
        return error, norm
    left = np.zeros(1) if one is None else one
    moved = left - (np.zeros(1) if two is None else two)
    return math.hypot(error, float(np.linalg.norm(moved))), math.hypot(norm, float(np.linalg.norm(left)))


def _error_of_weights(before: Update, after: Update) -> tuple[float, float]:
    """‖ΔW' − ΔW‖_F and ‖ΔW‖_F of two updates of one site, in float64.

    Of updates that are relative to the base weight, the stored tensors are compared, role by role, since ΔW is not
    known; the error is then the root of the sum over them.

    Raises:
        AdapterError: where the shapes differ, or only one of them is relative to the base.
    """
    if before.shape != after.shape:
        raise AdapterError("the shape of a site changed", expected=list(before.shape), found=list(after.shape))
    if isinstance(before, Relative) or isinstance(after, Relative) or -1 in before.shape:
        return _error_of_tensors(before, after)
    if _has_factors(before) and _has_factors(after):
        one, two = before.factors(np.float64), after.factors(np.float64)
        if one.scale == two.scale and np.array_equal(one.B, two.B) and np.array_equal(one.A, two.A):
            return 0.0, before.norm()  # QR of the two side by side would not give the zero exactly
        return float(distance(one.B, one.A, two.B, two.A, one.scale, two.scale)), before.norm()
    if is_same_update(before, after):
        return 0.0, _norm(before)
    return _distance_by_rows(before, after), _norm(before)


def _distance_by_rows(before: Update, after: Update) -> float:
    """‖ΔW' − ΔW‖_F of two additive updates of one shape, neither of which is there in full."""
    one, two = before.rows(np.float64), after.rows(np.float64)
    return math.hypot(*(dense_norm(two(block) - one(block)) for block in row_blocks(before.shape)))


def _norm(update: Update) -> float:
    """‖ΔW‖_F, by rows where the update cannot be measured otherwise."""
    try:
        return update.norm()
    except AdapterError as error:
        if error.code != "too-large":
            raise
    rows = update.rows(np.float64)
    return math.hypot(*(dense_norm(rows(block)) for block in row_blocks(update.shape)))


def is_same_update(before: Update, after: Update) -> bool:
    """Whether two updates have one ΔW since all that it is computed from is equal: kind, numbers and tensors.

    >>> from lorascope.adapter import LowRank
    >>> one = LowRank(np.ones((3, 1)), np.ones((1, 2)))
    >>> is_same_update(one, LowRank(one.B, one.A)), is_same_update(one, LowRank(one.B, one.A, scale=2.0))
    (True, False)
    """
    if type(before) is not type(after) or before.stored.keys() != after.stored.keys():
        return False
    stored = all(_is_equal(tensor, after.stored[role]) for role, tensor in before.stored.items())
    names = {field.name for field in fields(cast("Any", before))} - _FACTS
    return stored and all(_is_equal(getattr(before, name), getattr(after, name)) for name in names)


def _is_equal(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(two, np.ndarray):
        return type(one) is type(two) and one.dtype == two.dtype and np.array_equal(one, two)
    return bool(one == two)


def rounding_bound(before: Update, after: Update, dtype: np.dtype[Any] | None = None) -> float:
    """The relative error that storing ``after`` can give, of ΔW = scale · B · A.

    Each number is rounded at most twice, for a factor and for the dtype: by eps/2 of itself each time, or by half the
    smallest number of the dtype where that is more. So ‖δB‖ ≤ eps ‖B‖ + tiny √size, the same for A, and

        ‖δΔW‖_F ≤ |scale| (‖δB‖_F ‖A‖₂ + ‖B‖₂ ‖δA‖_F)

    eps and tiny are those of what ``after`` stores, or of the dtype that was asked for where it is coarser. Of updates
    that are no products of two factors, the numbers are bounded as if they had eight times their condition.
    """
    names = [name for name in after.dtype.split("/") if name.startswith(("float", "bfloat"))]
    kinds = [ml_dtypes.finfo(name) for name in (*names, *([] if dtype is None else [dtype]))]
    unit = max((float(kind.eps) for kind in kinds), default=0.0)
    tiny = max((float(kind.smallest_subnormal) for kind in kinds), default=0.0)
    work = 64 * float(np.finfo(np.float64).eps)  # of working out products, and of measuring
    after = after.inner if isinstance(after, DoRA) else after
    if not _has_factors(after):
        return 32.0 * (unit + work)
    B, A, _ = after.factors(np.float64)  # the scale cancels, and may be at the ends of the range
    norm = product_norm(B, A, 1.0, after.kind)
    if not norm:
        return unit + work
    moved_B, moved_A = ((unit + work) * dense_norm(factor) + tiny * math.sqrt(factor.size) for factor in (B, A))
    return (moved_B / norm) * _largest(A) + (moved_A / norm) * _largest(B)


def _largest(factor: NDArray[Any]) -> float:
    """‖·‖₂, no less."""
    size = dense_norm(factor)
    return size * float(np.linalg.norm(factor / size, 2)) if size else 0.0


def relative_error(before: Update, after: Update) -> float:
    """‖ΔW' − ΔW‖_F / ‖ΔW‖_F; 0 where both are zero, infinite where only ΔW is.

    >>> from lorascope.adapter import LowRank
    >>> one = LowRank(np.ones((3, 1)), np.ones((1, 2)))
    >>> round(relative_error(one, LowRank(one.B, one.A, scale=1.5)), 12)
    0.5
    """
    return ratio(*error_of(before, after))


def ratio(error: float, norm: float) -> float:
    """error / norm, 0 for 0/0."""
    if error == 0:
        return 0.0
    return error / norm if norm else math.inf


def _has_factors(update: Update) -> bool:
    return update.needs == "nothing" and (update.rank == update.dim or update.rank < min(update.shape))


def _error_of_tensors(before: Update, after: Update) -> tuple[float, float]:
    one, two = before.stored, after.stored
    if isinstance(before, DoRA) and isinstance(after, DoRA):
        error, norm = error_of(before.inner, after.inner)  # the scale may have moved into a factor: ΔV counts
        pair = [update.stored["magnitude"].astype(np.float64).ravel() for update in (before, after)]
        return math.hypot(error, float(np.linalg.norm(pair[0] - pair[1]))), math.hypot(norm, np.linalg.norm(pair[0]))
    if before.kind != after.kind or set(one) != set(two):
        raise AdapterError(
            "an update that is relative to the base changed its kind", expected=before.kind, found=after.kind
        )
    pairs = [(one[role].astype(np.float64), two[role].astype(np.float64)) for role in one]
    error = math.hypot(*(float(np.linalg.norm(x.ravel() - y.ravel())) for x, y in pairs))
    return math.hypot(error, before.scale - after.scale), math.hypot(*(float(np.linalg.norm(x)) for x, _ in pairs))
