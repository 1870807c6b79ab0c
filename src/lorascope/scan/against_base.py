"""An adapter against the weights of its base: names, shapes, biases, and weights that nothing can be added to.

Only the headers of the base are asked: names, shapes and dtypes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from lorascope.adapter import Adapter, Update
from lorascope.adapter.layout import Spot, doubtful, fitting
from lorascope.adapter.site import path_and_part
from lorascope.errors import AdapterError
from lorascope.formats.checkpoint import Checkpoint
from lorascope.scan.finding import Finding, explained
from lorascope.scan.saved_against_base import saved_biases_of_none, saved_findings

_OTHER_BASE = "is this the base that the adapter was made for?"


def base_findings(adapter: Adapter, base: Checkpoint) -> Iterator[Finding]:
    """The findings about an adapter against its base."""
    missing: list[str] = []
    quantised: dict[str, str] = {}
    biased: list[str] = []
    spots: dict[str, Spot] = {}
    known = {site: update for site, update in adapter.items() if base.has(site)}
    try:
        base.check_places(known)
    except AdapterError as error:
        yield Finding("base-ambiguous", "error", explained(error), error.key, error.hint)
    for site, update in adapter.items():
        try:
            if (packed := base.packed_name_of(site)) is not None:
                quantised[site] = base.tensors[packed].dtype.name
                continue
            if base.name_of(site) is None:
                missing.append(site)
                continue
            weight, spot = base.weight(site), base.spot(site)
        except AdapterError as error:
            yield Finding("base-ambiguous", "error", explained(error), site, error.hint)
            continue
        if _changes_bias(update) and (path_and_part(site)[1] is not None or base.bias_of(site) is None):
            biased.append(site)
        if base.is_quantised(site):
            quantised[site] = weight.dtype.name
            if _is_packed(weight.dtype):
                continue
        spots[site] = spot
        if not fitting(update, spot):
            yield Finding(
                "base-shape",
                "error",
                f"the update is for a weight of shape {_shape(update.base_shape)}, the base has {list(spot.shape)}",
                site,
                _OTHER_BASE,
            )
    for site in doubtful({site: adapter[site] for site in spots}, spots):
        text = "the weight fits either way round, and neither the adapter nor the base tells which way it is stored"
        yield Finding("base-layout", "warning", text, site, "put config.json beside the base's weights")
    weights = {site: name for site in known if (name := base.name_of(site)) is not None}
    yield from saved_findings(adapter, base, weights)
    biased += saved_biases_of_none(adapter, base)
    if missing:
        text = f"the base has no {_listed(missing)}: {len(missing)} of {len(adapter)} sites"
        yield Finding("base-missing", "error", text, _alone(missing), "is this the right base?")
    if biased:
        text = f"the adapter changes a bias that the base has not, of {_listed(biased)}"
        yield Finding("base-bias", "error", text, _alone(biased), _OTHER_BASE)
    if quantised:
        dtypes = ", ".join(f"{dtype} at {count}" for dtype, count in Counter(quantised.values()).most_common())
        yield Finding(
            "base-quantised",
            "warning",
            f"the weights of the base are quantised ({dtypes} of {len(adapter)} sites), so the update cannot be added "
            "to them, only run beside them",
            _alone(list(quantised)),
            "bake and merge into the base that is not quantised",
        )


def _changes_bias(update: Update) -> bool:
    return update.bias is not None or "bias" in update.stored


def _is_packed(dtype: np.dtype[np.generic]) -> bool:
    """Whether a stored number may hold several of the weight: quantisers pack into unsigned and into wide integers."""
    return dtype.kind == "u" or (dtype.kind == "i" and dtype.itemsize > 1)


def _alone(sites: Sequence[str]) -> str | None:
    return sites[0] if len(sites) == 1 else None


def _listed(sites: Sequence[str]) -> str:
    more = f" and {len(sites) - 3} more" if len(sites) > 3 else ""
    return ", ".join(sites[:3]) + more


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join("?" if axis < 0 else str(axis) for axis in shape) + "]"
