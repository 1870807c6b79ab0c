"""Parametrisations: how the tensors of one site make an update. Every file of ``parametrisations`` is one.

A key grammar says which tensor has which role at which site and where the scale comes from; a parametrisation says
what the tensors under these roles mean. So PEFT's and LyCORIS's LoHa share one formula under two sets of names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from lorascope.adapter import Layer, Update
from lorascope.adapter.widening import is_floating
from lorascope.errors import AdapterError
from lorascope.family import Family
from lorascope.formats.pairs import Scale

Exactness = Literal["low rank", "low rank, expanded", "dense", "relative to the base weight"]
"""What ΔW is: scale · B · A as stored; the same, worked out from what is stored; of full rank; unknown without W."""


def no_scale(dim: int) -> Scale:
    """The scale of a parametrisation that has none."""
    return Scale(1.0, None)


@dataclass(frozen=True)
class Parts:
    """What a key grammar hands to a parametrisation: one site's tensors by role.

    Args:
        site: the site's name, for messages.
        tensors: role → tensor, those that all sites share included.
        keys: role → the tensor's name in the file.
        scale_of: dim → ``Scale``, where the grammar takes the scale from.
        layer: what the grammar knows of the base layer; "linear" where it knows nothing.
        is_transposed: whether a linear base is stored as [in, out].
        options: fields of the configuration, not trusted.
    """

    site: str
    tensors: Mapping[str, NDArray[Any]]
    keys: Mapping[str, str] = field(default_factory=dict[str, str])
    scale_of: Callable[[int], Scale] = no_scale
    layer: Layer = "linear"
    is_transposed: bool = False
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __contains__(self, role: object) -> bool:
        return role in self.tensors

    def tensor(self, role: str, *axes: int | None) -> NDArray[Any]:
        """The tensor of a role, with floating-point numbers and, where ``axes`` are given, of that shape.

        Args:
            role: one of the roles of the parametrisation.
            axes: the expected length of each axis, None where any will do; no check if left out.

        Raises:
            AdapterError: naming site and tensor, where it is missing, empty, of integers or of another shape.
        """
        tensor = self.tensors.get(role)
        if tensor is None:
            raise AdapterError(
                f"the tensor {role} is missing at this site",
                key=self.site,
                expected=role,
                found=", ".join(self.tensors) or "nothing",
            )
        key = self.keys.get(role, role)
        if tensor.size == 0 or not is_floating(tensor):
            raise AdapterError(
                f"{key} is empty or does not hold floating-point numbers",
                key=self.site,
                found=f"{tensor.dtype.name} {list(tensor.shape)}",
                hint="ZeRO-3 and FSDP leave empty tensors when a model is saved before its shards are gathered"
                if tensor.size == 0
                else None,
            )
        fits = len(axes) == tensor.ndim and all(
            axis in (None, length) for axis, length in zip(axes, tensor.shape, strict=False)
        )
        if axes and not fits:
            raise AdapterError(
                f"{key} has another shape than this parametrisation gives it",
                key=self.site,
                expected=f"[{', '.join('n' if axis is None else str(axis) for axis in axes)}]",
                found=list(tensor.shape),
            )
        return tensor

    def named(self, *roles: str) -> dict[str, NDArray[Any]]:
        """The tensors of those roles that are there."""
        return {role: self.tensors[role] for role in roles if role in self.tensors}


@dataclass(frozen=True)
class Parametrisation:
    """How the tensors of one site make an update.

    Args:
        name: stable name, such as ``loha``; that of its file and of ``Update.kind``.
        title: for people.
        formula: ΔW in one line.
        reference: paper or source.
        defaults: what is assumed where the file says nothing, in a few words.
        exactness: what ΔW is.
        oracles: the libraries that the tests compare it with; empty where there is none.
        build: parts → update.
    """

    name: str
    title: str
    formula: str
    reference: str
    exactness: Exactness
    build: Callable[[Parts], Update]
    defaults: str = ""
    oracles: tuple[str, ...] = ()


PARAMETRISATIONS: Family[Parametrisation] = Family(
    "parametrisation", "lorascope.formats.parametrisations", "PARAMETRISATION", "lorascope.parametrisations"
)
"""The parametrisations, one file each; other packages add theirs by entry points of the same name."""


def built(parametrisation: str, parts: Parts) -> Update:
    """The update that a site's tensors make, with the site named in every error.

    Raises:
        AdapterError: where the tensors do not fit the parametrisation.
    """
    try:
        return PARAMETRISATIONS[parametrisation].build(parts)
    except AdapterError as error:
        if error.key != parts.site:
            error.key = parts.site if error.key is None else f"{parts.site}: {error.key}"
        raise
