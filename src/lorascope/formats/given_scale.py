"""The scale that a person gives where the file states none."""

from __future__ import annotations

import math
from dataclasses import replace

from lorascope.adapter import Adapter, Note
from lorascope.errors import AdapterError

_ASSUMED = ("scale-assumed", "config-missing")


def with_given_scale(adapter: Adapter, scale: float) -> Adapter:
    """The adapter with ``scale`` at every site that states no alpha, where the reader had to assume one.

    Raises:
        AdapterError: where the file states its scales, so that another one would be wrong.

    >>> import numpy as np
    >>> from lorascope.adapter import LowRank
    >>> update = LowRank(np.ones((2, 1)), np.ones((1, 2)))
    >>> adapter = Adapter({"q": update}, notes=(Note("scale-assumed", "no alpha: scale 1"),))
    >>> with_given_scale(adapter, 2.0)["q"].scale
    2.0
    """
    if not math.isfinite(scale):
        raise AdapterError("the scale must be a finite number", found=scale)
    if not any(note.code in _ASSUMED for note in adapter.notes):
        raise AdapterError(
            "the file states its scale, so none can be given",
            file=adapter.provenance.path,
            found=", ".join(sorted({f"{update.scale:g}" for update in adapter.values()})[:5]),
        )
    sites = {site: update if update.alpha is not None else update.rescaled(scale) for site, update in adapter.items()}
    notes = [note for note in adapter.notes if note.code not in _ASSUMED]
    given = Note("scale-given", f"scale {scale:g} as given; the file does not state it")
    return replace(adapter, sites=sites, notes=(*notes, given))
