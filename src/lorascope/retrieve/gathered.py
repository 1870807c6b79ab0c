"""Adapters of any format side by side: their sites under one name where bare names, shapes and kernels agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lorascope.adapter import Adapter
from lorascope.compare.pairwise import Pairwise, pairwise
from lorascope.errors import AdapterError
from lorascope.symmetry.common_sites import CommonSites
from lorascope.symmetry.site_names import bare_names


def gathered(adapters: Sequence[Adapter], names: Sequence[str]) -> CommonSites:
    """The adapters as ``CommonSites`` that never disagree: a layer of another shape is another layer.

    >>> import numpy as np
    >>> from lorascope.adapter import LowRank
    >>> some = [Adapter({name: LowRank(np.ones((2, 1)), np.ones((1, 3)))}) for name in ("unet.q", "q")]
    >>> gathered(some, ["a", "b"]).all
    ('q [2, 3]',)
    """
    return CommonSites.of([_named(adapter) for adapter in adapters], names, is_any_base=True)


def _named(adapter: Adapter) -> Adapter:
    bare = bare_names(list(adapter))
    sites = {
        f"{bare[site]} {list(update.shape)}" + (f" {list(update.kernel)}" if update.kernel else ""): update
        for site, update in adapter.items()
    }
    return adapter.with_sites(sites)


def all_pairs(common: CommonSites, advance: Callable[[int], Any] | None = None) -> Pairwise:
    """``pairwise`` of gathered adapters.

    Raises:
        AdapterError: where there are none, or no two of them have a layer in common.
    """
    if not common.adapters:
        raise AdapterError("there are no adapters", expected="one or more")
    return pairwise(common, advance=advance)
