"""An adapter put into a PyTorch model: W + ΔW while it is on, the very same W when it is off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter.layout import UNFLAGGED_CLASSES, Layout, Spot, check_answer, settled
from lorascope.adapter.paths import Paths, alike
from lorascope.adapter.site import Part, path_and_part
from lorascope.errors import AdapterError, MissingExtraError

if TYPE_CHECKING:
    from lorascope.adapter.adapter import Adapter
    from lorascope.adapter.update import Update


class Application:
    """ΔW of every site added to a model's weights, until ``remove`` (or the end of a ``with`` block).

    The base weights are kept, not recomputed by subtraction, so taking the adapter out is exact in any dtype.
    The sum is formed in float32 (float64 for float64 weights) and rounded once to the dtype of the weight.
    Applications on one model nest: the last put in comes out first. Which way round a weight is stored is told by
    the module: its class, and the flag ``is_transposed`` of experts.
    """

    def __init__(self, adapter: Adapter, model: Any, *, component: str = "", layout: Layout | None = None) -> None:
        try:
            import torch
        except ImportError as error:
            raise MissingExtraError.of("torch", "learn", "putting an adapter into a model") from error
        prefix = f"{component}." if component and not component.endswith(".") else component
        modules: dict[str, Any] = dict(model.named_modules())
        paths = Paths(modules)
        places = {site: _place_of(modules, paths, site, prefix) for site in adapter}
        _check_places(places)
        spots = {site: place.spot(site) for site, place in places.items()}
        file = adapter.provenance.path
        check_answer(layout, [(adapter, spots)], of="model")
        updates = settled(adapter, spots, of="model", given=layout, file=file)
        planned = [(places[site], update, site) for site, update in updates.items()]
        self._kept: list[tuple[str, Any, Any, Any]] = []
        try:
            for place, update, site in planned:
                wide = torch.float64 if place.weight.dtype == torch.float64 else torch.float32
                numbers = np.float64 if wide == torch.float64 else np.float32
                self._add(place.weight, place.part, _delta_at(place, update, site, numbers), wide, site)
                bias = getattr(place.module, "bias", None)
                delta = update.delta_bias(numbers, base=None if bias is None else _as_numpy(bias, numbers))
                if delta is not None and bias is None:
                    raise AdapterError("the adapter changes a bias that the layer has not", key=site)
                if delta is not None:
                    self._add(bias, place.part, delta, wide, site)
        except BaseException:
            self.remove()
            raise

    def _add(self, weight: Any, part: Part | None, delta: NDArray[Any], wide: Any, site: str) -> None:
        import torch

        base = weight.data
        added = torch.as_tensor(np.ascontiguousarray(delta), device=base.device)
        if part is None:
            moved = (base.to(wide) + added.reshape(base.shape)).to(base.dtype)
        else:
            moved = base.clone()
            view = part.of(moved, site)
            view.copy_((view.to(wide) + added.reshape(view.shape)).to(base.dtype))
        if not bool(torch.isfinite(moved.float()).all()):
            raise AdapterError("the sum is beyond the range of the weight's dtype", key=site, found=str(base.dtype))
        self._kept.append((site, weight, base, moved))
        weight.data = moved

    def remove(self) -> None:
        """Take the adapter out: every weight is the tensor it was. Doing it twice does nothing.

        Raises:
            AdapterError: where a weight is no longer the one that this application put in; nothing is changed.
        """
        held: dict[int, int] = {}
        for site, weight, base, moved in reversed(self._kept):
            if held.get(id(weight), weight.data_ptr()) != moved.data_ptr():
                raise AdapterError(
                    "the weight was replaced: another adapter was put in after this one, or the model moved",
                    key=site,
                    hint="take the adapter that was put in last out first",
                )
            held[id(weight)] = base.data_ptr()
        while self._kept:
            _, weight, base, _ = self._kept.pop()
            weight.data = base

    def __enter__(self) -> Application:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


@dataclass(frozen=True)
class _Place:
    """Where a site is: the module, its weight (or fused parameter), and the part of it."""

    module: Any
    weight: Any
    part: Part | None

    def view(self, site: str) -> Any:
        return self.weight if self.part is None else self.part.of(self.weight, site)

    def spot(self, site: str) -> Spot:
        """What the module tells of the layout of its weight."""
        shape = tuple(self.view(site).shape)
        if self.part is not None and self.part.end is None:
            is_flagged = bool(getattr(self.module, "is_transposed", False))
            is_in_out = is_flagged or type(self.module).__name__ in UNFLAGGED_CLASSES
            return Spot(shape, "expert", is_in_out, is_flagged)
        if _is_a(self.module, "Conv1D", "transformers"):
            return Spot(shape, "conv1d", is_in_out=True)
        return Spot(shape, is_in_out=False if _is_a(self.module, "Linear", "torch.nn") else None)


def _is_a(module: Any, name: str, package: str) -> bool:
    """Whether a module is of a class, which need not be importable."""
    return any(one.__name__ == name and one.__module__.startswith(package) for one in type(module).__mro__)


def _check_places(places: Mapping[str, _Place]) -> None:
    """Each weight is changed once, is a plain parameter, and holds numbers that something can be added to."""
    taken: dict[int, list[tuple[str, Part | None]]] = {}
    for site, place in places.items():
        weight = place.weight
        is_plain = weight.is_floating_point() and weight.element_size() > 1 and not weight.is_meta
        if not is_plain or hasattr(place.module, "parametrizations") or hasattr(place.module, "weight_g"):
            raise AdapterError(
                "nothing can be added to this weight: it is quantised, parametrised or not there",
                key=site,
                expected="a plain weight of floating-point numbers",
                found=f"{weight.dtype} on {weight.device}",
            )
        for other, part in taken.get(id(weight), []):
            if part is None or place.part is None or part.overlaps(place.part):
                raise AdapterError("two sites of the adapter are one weight of the model", key=site, found=other)
        taken.setdefault(id(weight), []).append((site, place.part))


def _as_numpy(tensor: Any, dtype: DTypeLike) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().double().numpy().astype(dtype)
    return array


def _delta_at(place: _Place, update: Update, site: str, dtype: DTypeLike) -> NDArray[Any]:
    needs_base = update.needs in ("base shape", "base weight")
    try:
        return update.delta_weight(dtype, base=_as_numpy(place.view(site), dtype) if needs_base else None)
    except AdapterError as error:
        error.key = error.key or site
        raise


def _unwrapped(module: Any) -> Any:
    """The layer itself, where PEFT has put layers of its own around it."""
    while hasattr(inner := getattr(module, "base_layer", None), "named_modules"):
        module = inner
    return module


def _place_of(modules: Mapping[str, Any], paths: Paths, site: str, prefix: str) -> _Place:
    path, part = path_and_part(site[len(prefix) :] if prefix and site.startswith(prefix) else site)
    found = paths.find(path)
    if len(found) > 1:
        raise AdapterError("several layers of the model fit this site", key=site, found=", ".join(found[:3]))
    module = _unwrapped(modules[found[0]]) if found else None
    if module is not None and hasattr(module, "weight"):
        return _Place(module, module.weight, part)
    above, _, name = path.rpartition(".")  # a fused parameter is named itself, not by a module
    owners = [_unwrapped(modules[one]) for one in paths.find(above)] if module is None and part is not None else []
    if len(owners) == 1 and hasattr(getattr(owners[0], name, None), "dtype"):
        return _Place(owners[0], getattr(owners[0], name), part)
    like = alike(path, modules)
    raise AdapterError(
        "the model has no such layer",
        key=site,
        expected="a module path of the model that has a weight",
        found="no module of that name" if module is None else type(module).__name__,
        hint=f"the model has {', '.join(like)}; pass component= to drop a prefix"
        if like
        else "is this the base that the adapter was made for?",
    )
