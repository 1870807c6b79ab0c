"""The sites of an adapter in stacks of bounded size, under names that do not depend on the format.

Two sites are one where their bare names and their shapes are: what a framework puts in front of a path is left aside,
and a layer of another shape is another layer, orthogonal to the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter
from lorascope.errors import AdapterError
from lorascope.symmetry.site_names import bare_names
from lorascope.symmetry.stack import factors_of

T = TypeVar("T")

STACKED = 1 << 21
"""Numbers of factors that are worked out at a time: 16 MB."""


class Key(NamedTuple):
    """A site of any adapter: its bare name, out and in."""

    name: str
    out: int
    in_: int


class Stack(NamedTuple):
    """Sites of one shape: B [sites, out, rank] and A [sites, rank, in] in float64, the scale folded into B."""

    keys: tuple[Key, ...]
    B: NDArray[np.float64]
    A: NDArray[np.float64]


def keys_of(adapter: Adapter) -> dict[Key, str]:
    """Key → the name of the site in this adapter."""
    return {Key(bare, *adapter[site].shape): site for site, bare in bare_names(list(adapter)).items()}


def at_site(adapter: Adapter, site: str, compute: Callable[[], T]) -> T:
    """What ``compute`` gives of a site whose ΔW is known without the base weight.

    Raises:
        AdapterError: where it is not, or what ``compute`` raises, placed at the file and the site.
    """
    update = adapter[site]
    try:
        if update.needs not in ("nothing", "dense room"):
            update.factors(np.float64)  # says why there is no ΔW
            raise AdapterError("ΔW is known only with the base weight")
        return compute()
    except AdapterError as error:
        error.file = error.file or (adapter.provenance.path and str(adapter.provenance.path))
        error.key = error.key or site
        raise


def sites_digest(adapter: Adapter) -> str:
    """A hash of which layers are adapted, whatever their order."""
    text = "\n".join(sorted(f"{key.name} {key.out} {key.in_}" for key in keys_of(adapter)))
    return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def stacks(adapter: Adapter, keys: dict[Key, str] | None = None) -> Iterator[Stack]:
    """The sites in stacks of one shape and rank, each of at most ``STACKED`` numbers or of one site.

    Raises:
        AdapterError: where ΔW depends on the base weight, is too large or not finite; it names the site.
    """
    wanted = keys_of(adapter) if keys is None else keys
    alike: dict[tuple[int, int, int], list[Key]] = {}
    for key, site in wanted.items():
        alike.setdefault((key.out, key.in_, adapter[site].rank), []).append(key)
    for (out, in_, rank), some in alike.items():
        step = max(1, STACKED // max(1, rank * (out + in_)))
        for begin in range(0, len(some), step):
            chunk = tuple(some[begin : begin + step])
            pairs = [scaled_factors(adapter, wanted[key]) for key in chunk]
            yield Stack(chunk, np.stack([B for B, _ in pairs]), np.stack([A for _, A in pairs]))


def scaled_factors(adapter: Adapter, site: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """B · scale and A in float64, of rank 1 at least.

    Raises:
        AdapterError: as ``stacks``.
    """
    try:
        B, A, scale = factors_of(adapter, site, np.float64)
    except AdapterError as error:
        error.key = error.key or site
        raise
    with np.errstate(over="ignore", invalid="ignore"):
        scaled: Any = B * scale
    if not np.isfinite(scaled).all():
        raise AdapterError("ΔW is beyond the range of float64", file=adapter.provenance.path, key=site)
    if not B.shape[1]:
        return np.zeros((B.shape[0], 1)), np.zeros((1, A.shape[1]))
    return scaled, A
