"""``Adapter``: a mapping from site names to updates, with where it came from and what was left over."""

from __future__ import annotations

import math
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from lorascope.adapter.update import Update
from lorascope.errors import AdapterError

if TYPE_CHECKING:
    from lorascope.adapter.application import Application
    from lorascope.adapter.layout import Layout


@dataclass(frozen=True)
class Note:
    """Something about an adapter that a person would want to know.

    Args:
        code: stable and machine-readable, such as ``scale-assumed``.
        text: one sentence.
        site: the site, where it is about one, or None.
        sites: all sites that it is about, where the reader knows them.
        is_doubt: whether the update that was read may be another one than was trained, so that nothing should be
            made of it before someone has looked: an unknown scale, rows in an unknown order.
        is_decided: whether what was taken follows from the format by its definition, so that there is nothing to ask.
    """

    code: str
    text: str
    site: str | None = None
    sites: tuple[str, ...] = ()
    is_doubt: bool = False
    is_decided: bool = False


@dataclass(frozen=True)
class Provenance:
    """Where an adapter came from: facts of the file, none of which is needed to compute with it.

    Args:
        format: name of the key grammar, such as ``peft``.
        kind: name of the parametrisation, such as ``lora``.
        evidence: why the file was taken for this format, or None.
        path: the file read, or None.
        base_model: the base model as the file names it, or None.
        config: the parsed configuration beside the weights, or empty.
        config_text: that configuration letter by letter, for a lossless write-back, or None.
        metadata: the metadata inside the weights file, or empty.
        is_relative_to_base: False where the initialisation changed the base weights (PiSSA, OLoRA, CorDA,
            LoRA-GA, LoftQ), so that ΔW is not relative to the published base.
        base_config: what is known of the base model's own ``config.json`` (``model_type``, numbers of heads), which
            few adapters state; formats that name or order tensors by it need it.
    """

    format: str = "memory"
    kind: str = "lora"
    evidence: str | None = None
    path: Path | None = None
    base_model: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    config_text: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    is_relative_to_base: bool = True
    base_config: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, eq=False)
class Adapter(Mapping[str, Update]):
    """A LoRA adapter: site name → update. Immutable; every edit gives a new one.

    Args:
        sites: site name → update, in the order in which they are to be listed.
        provenance: where it came from.
        leftovers: tensors of the file that belong to no site (saved heads, token rows), untouched.
        notes: what is unusual about it.
        original: the tensors of the file under their own names, for a lossless write-back; dropped by edits.

    >>> import numpy as np
    >>> from lorascope.adapter import LowRank
    >>> adapter = Adapter({"q": LowRank(B=np.ones((2, 1)), A=np.ones((1, 2)))})
    >>> len(adapter), adapter["q"].shape, round(adapter.norm(), 12)
    (1, (2, 2), 2.0)
    """

    sites: Mapping[str, Update]
    provenance: Provenance = field(default_factory=Provenance)
    leftovers: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    notes: tuple[Note, ...] = ()
    original: Mapping[str, NDArray[Any]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", MappingProxyType(dict(self.sites)))
        object.__setattr__(self, "leftovers", MappingProxyType(dict(self.leftovers)))
        if self.original is not None:
            object.__setattr__(self, "original", MappingProxyType(dict(self.original)))

    def __getitem__(self, site: str) -> Update:
        return self.sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def items(self) -> ItemsView[str, Update]:
        """Sites and updates; straight from the dictionary, since a file may have a hundred thousand."""
        return self.sites.items()

    def values(self) -> ValuesView[Update]:
        """The updates."""
        return self.sites.values()

    def __repr__(self) -> str:
        ranks = sorted({update.rank for update in self.values()})
        return f"Adapter({self.provenance.format} {self.provenance.kind}, {len(self)} sites, ranks {ranks})"

    def norm(self) -> float:
        """The Frobenius norm of all ΔW together, √(Σ ‖ΔW‖²), in float64, one site at a time."""
        return math.hypot(*self._for_each_site(lambda update: update.norm()))

    def _for_each_site(self, function: Callable[[Update], float]) -> list[float]:
        values: list[float] = []
        for site, update in self.items():
            try:
                values.append(function(update))
            except AdapterError as error:
                error.file = error.file or (self.provenance.path and str(self.provenance.path))
                error.key = error.key or site
                raise
        return values

    def with_sites(self, sites: Mapping[str, Update]) -> Adapter:
        """The same adapter with other updates; the original tensors no longer ride along."""
        return replace(self, sites=sites, original=None)

    def apply_to(
        self, model: Any, *, component: str = "", layout: Layout | None = None, is_loss_allowed: bool = False
    ) -> Application:
        """Add ΔW to the weights of a PyTorch model, in place; the result takes it out again, exactly.

        Tensors that the adapter saved whole (``modules_to_save``, biases of ``bias="all"``) take the place of the
        model's, as when ``bake`` folds them in, and come out with it.

        A weight that several modules share changes in all of them, as when PEFT merges: the head of a model whose
        embedding is tied to it moves with the embedding.

        Args:
            model: a ``torch.nn.Module``; each site must name a submodule with a ``weight`` of fitting shape.
            component: a prefix that the site names have and the model's module paths have not, such as
            ``unet``. Wrappers of frameworks (``model.``, ``base_model.``, ``module.``) need not be given.
            layout: how the model stores square weights of which its modules do not tell it, "out-in" or "in-out".
                An answer that no site needs and that contradicts what is known is refused.
            is_loss_allowed: leave out saved tensors that have no place in the model, instead of refusing.

        Raises:
            AdapterError: where a site or a saved tensor is not in the model or does not fit, or would move a head with
                its embedding; the model is then unchanged.

        >>> import pytest; torch = pytest.importorskip("torch")
        >>> import numpy as np
        >>> from lorascope.adapter import LowRank
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3))
        >>> adapter = Adapter({"0": LowRank(np.ones((3, 1)), np.ones((1, 2)))})
        >>> before = model(torch.ones(1, 2))
        >>> with adapter.apply_to(model):
        ...     bool((model(torch.ones(1, 2)) - before - 2).abs().max() < 1e-6)
        True
        >>> bool((model(torch.ones(1, 2)) == before).all())
        True
        """
        from lorascope.adapter.application import Application

        return Application(self, model, component=component, layout=layout, is_loss_allowed=is_loss_allowed)
