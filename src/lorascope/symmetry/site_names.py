"""One layer under two names: what frameworks put in front of a path may be there or not.

unet.down_blocks.0.attn1.to_q = down_blocks.0.attn1.to_q        model.layers.0.q_proj = layers.0.q_proj
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorascope.adapter import Adapter
from lorascope.adapter.paths import WRAPPERS, Paths
from lorascope.adapter.site import path_and_part


def bare_name(site: str) -> str:
    """The name of a site without what may stand in front of it.

    >>> bare_name("base_model.model.model.layers.0.q"), bare_name("text_encoder.layers.0.q"), bare_name("model")
    ('layers.0.q', 'text_encoder.layers.0.q', 'model')
    """
    parts = site.split(".")
    first = next((at for at, part in enumerate(parts[:-1]) if part not in WRAPPERS), len(parts) - 1)
    return ".".join(parts[first:])


def bare_names(sites: Sequence[str]) -> dict[str, str]:
    """Site → its bare name; the whole name where two sites of an adapter would have one bare name.

    >>> bare_names(["unet.0.q", "model.0.q", "model.1.q"])
    {'unet.0.q': 'unet.0.q', 'model.0.q': 'model.0.q', 'model.1.q': '1.q'}
    """
    bare = {site: bare_name(site) for site in sites}
    count: dict[str, int] = {}
    for name in bare.values():
        count[name] = count.get(name, 0) + 1
    return {site: name if count[name] == 1 else site for site, name in bare.items()}


def named_alike(adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters, with the site names of the first for the layers that it has.

    An adapter that has a name of the first keeps all of its own: then they speak of one tree.

    >>> import numpy as np
    >>> from lorascope.adapter import LowRank
    >>> one, two = (Adapter({name: LowRank(np.ones((2, 1)), np.ones((1, 2)))}) for name in ("unet.0.q", "0.q"))
    >>> [list(adapter) for adapter in named_alike([one, two])]
    [['unet.0.q'], ['unet.0.q']]
    """
    if not adapters:
        return []
    first, *others = adapters
    paths = Paths(path_and_part(site)[0] for site in first)
    return [first, *(one if any(site in first for site in one) else _renamed(one, paths) for one in others)]


def _renamed(adapter: Adapter, paths: Paths) -> Adapter:
    names: dict[str, str] = {}
    for site in adapter:
        path, _ = path_and_part(site)
        found = paths.find(path)
        names[site] = found[0] + site[len(path) :] if len(found) == 1 and site.startswith(path) else site
    if len(set(names.values())) < len(names):
        return adapter
    return replace(adapter, sites={names[site]: update for site, update in adapter.items()})
