"""``update_of``: the update that a kind's tensors make at a layer, built as a reader of files builds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lorascope.adapter import Update
from lorascope.forge.layer import SiteLayer
from lorascope.formats.pairs import Scale
from lorascope.formats.parametrisation import Parts, built


def update_of(
    layer: SiteLayer,
    parametrisation: str,
    tensors: Mapping[str, Tensor],
    *,
    scale: float = 1.0,
    alpha: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Update:
    """The update of a parametrisation from copies of its tensors by role, with the shape of the layer filled in.

    Raises:
        AdapterError: where the tensors do not fit the parametrisation.
    """
    parts = Parts(
        layer.site,
        {role: tensor.detach().cpu().contiguous().clone().numpy() for role, tensor in tensors.items()},
        scale_of=lambda dim: Scale(scale, alpha),
        layer=layer.layer,
        is_transposed=layer.is_transposed,
        options=options or {},
    )
    update: Any = built(parametrisation, parts)
    return update.resolved(layer.base_shape)
