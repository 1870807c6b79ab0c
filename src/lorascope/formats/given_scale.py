"""The scale that a person gives where the file states none."""

from __future__ import annotations

import math
from dataclasses import replace

from lorascope.adapter import Adapter, Note
from lorascope.errors import AdapterError

_ASSUMED = ("scale-assumed", "scale-unknown", "config-missing")


def with_given_scale(adapter: Adapter, scale: float) -> Adapter:
    """The adapter with ``scale`` at the sites where the reader had to assume one, and there alone.

    It is an edit: written to its own format, the file states the scale, and is no longer the very one that was read.

    Raises:
        AdapterError: where the file states its scales, so that another one would be wrong.

    >>> import numpy as np
    >>> from lorascope.adapter import LowRank
    >>> update = LowRank(np.ones((2, 1)), np.ones((1, 2)))
    >>> adapter = Adapter({"q": update, "v": update}, notes=(Note("scale-assumed", "at v", "v", sites=("v",)),))
    >>> {site: update.scale for site, update in with_given_scale(adapter, 2.0).items()}
    {'q': 1.0, 'v': 2.0}
    """
    if not math.isfinite(scale):
        raise AdapterError("the scale must be a finite number", found=scale)
    assumed = _open_sites(adapter)
    if not assumed:
        raise AdapterError(
            "the file states its scale, so none can be given",
            file=adapter.provenance.path,
            found=", ".join(sorted({f"{update.scale:g}" for update in adapter.values()})[:5]),
        )
    sites = {site: update.rescaled(scale) if site in assumed else update for site, update in adapter.items()}
    notes = [note for note in adapter.notes if note.code not in _ASSUMED]
    where = f"at {len(assumed)} sites" if len(assumed) < len(adapter) else "everywhere"
    given = Note("scale-given", f"scale {scale:g} as given, {where}; the file does not state it")
    return replace(adapter.with_sites(sites), notes=(*notes, given))


def is_scale_open(adapter: Adapter) -> bool:
    """Whether the reader had to assume the scale of a site."""
    return bool(_open_sites(adapter))


def _open_sites(adapter: Adapter) -> set[str]:
    return {site for note in adapter.notes if note.code in _ASSUMED for site in note.sites}
