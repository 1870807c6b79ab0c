"""Scalars that are stored as tensors, such as the alpha of a site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Update
from lorascope.errors import AdapterError


def stated_alpha(tensor: NDArray[Any], key: str) -> float | None:
    """The alpha in a tensor of one number; None where it is 0, which trainers take for "not stated".

    >>> stated_alpha(np.array(4.0, np.float16), "q.alpha")
    4.0

    Raises:
        AdapterError: where it is not one finite number.
    """
    # blocks of Q8_0 have fields; the kind of bfloat16 is that of raw bytes, and it is a number all the same
    if tensor.size != 1 or tensor.dtype.kind == "c" or tensor.dtype.names is not None:
        raise AdapterError("alpha is not one number", key=key, found=f"{tensor.dtype.name} {list(tensor.shape)}")
    value = float(tensor.reshape(()).astype(np.float64))
    if not math.isfinite(value):
        raise AdapterError(f"non-finite value in {key}", key=key, expected="a finite alpha", found=value)
    return value or None


def alpha_for(update: Update, rank: int) -> float:
    """An alpha with alpha / rank == scale in float64 where there is one: the stated one if it fits.

    Raises:
        AdapterError: where it is beyond the range of float64.
    """
    guess = update.scale * rank
    if not math.isfinite(guess):
        raise AdapterError("alpha = scale · rank is beyond the range of float64", found=f"{update.scale:g} · {rank}")
    candidates = [guess, math.nextafter(guess, math.inf), math.nextafter(guess, -math.inf)]
    if update.alpha is not None:
        candidates.insert(0, update.alpha)
    return next((alpha for alpha in candidates if alpha / rank == update.scale), guess)


def alphas_for(updates: Mapping[str, Update], ranks: Mapping[str, int]) -> dict[str, float]:
    """Site → ``alpha_for``, whose error names the site."""
    alphas: dict[str, float] = {}
    for site, update in updates.items():
        try:
            alphas[site] = alpha_for(update, ranks[site])
        except AdapterError as error:
            error.key = site
            raise
    return alphas
