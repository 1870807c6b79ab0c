"""Structured updates as plain factors, for files that hold nothing else.

What a file will look like is known from an ``outline``, which has shapes and scales but no numbers; the numbers are
worked out site by site when they are written.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from lorascope.adapter import Expanded, Update
from lorascope.formats.parametrisations.dora import DoRA


def outlined(update: Update, kept: Collection[str] = ()) -> Update:
    """The update with its factors as plain ones that have no values; updates of the ``kept`` kinds as they are.

    Raises:
        AdapterError: where the factors would be larger than ΔW, or have no room.

    >>> import numpy as np
    >>> from lorascope.adapter import LowRank
    >>> update = LowRank(np.ones((4, 2)), np.ones((2, 3)))
    >>> outlined(update) is update
    True
    """
    if isinstance(update, DoRA):
        return _around(update, outlined(update.inner, kept))
    return update.outline() if isinstance(update, Expanded) and _is_made_plain(update, kept) else update


def worked_out(update: Update, kept: Collection[str] = ()) -> Update:
    """The same with values.

    Raises:
        AdapterError: as ``outlined``, and where a value is not finite.
    """
    if isinstance(update, DoRA):
        return _around(update, worked_out(update.inner, kept))
    return update.as_low_rank() if isinstance(update, Expanded) and _is_made_plain(update, kept) else update


def _is_made_plain(update: Expanded, kept: Collection[str]) -> bool:
    return update.kind == "lora" or update.kind not in kept  # a plain pair that is not made yet


def is_expanded(update: Update, kept: Collection[str]) -> bool:
    """Whether an update, or what is inside a DoRA, is of a kind that is worked out where a file has the ``kept`` ones.

    A pair of plain factors that is only made when it is asked for is not.
    """
    if isinstance(update, DoRA):
        return is_expanded(update.inner, kept)
    return isinstance(update, Expanded) and update.kind not in ("lora", *kept)


def _around(update: DoRA, inner: Update) -> DoRA:
    if inner is update.inner:
        return update
    stored = {**inner.stored, "magnitude": update.stored["magnitude"]}
    return replace(
        update, inner=inner, stored=stored, dim=inner.dim, scale=inner.scale, alpha=inner.alpha, bias=inner.bias
    )
