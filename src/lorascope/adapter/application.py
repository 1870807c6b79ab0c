"""An adapter put into a PyTorch model: W + ΔW while it is on, the very same W when it is off.

Tensors that the adapter saved whole (a head, biases) take the place of the model's; ΔW is added to what is then there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter.layout import UNFLAGGED_CLASSES, Layout, Spot, check_answer, settled
from lorascope.adapter.paths import Paths, alike
from lorascope.adapter.saved import placed, refusal
from lorascope.adapter.site import Part, path_and_part
from lorascope.adapter.widening import widened
from lorascope.errors import AdapterError, MissingExtraError

if TYPE_CHECKING:
    from lorascope.adapter.adapter import Adapter
    from lorascope.adapter.update import Update


class Application:
    """ΔW of every site added to a model's weights, until ``remove`` (or the end of a ``with`` block).

    Saved tensors take the place of the model's own by the rules by which ``bake`` places them. The base weights are
    kept, not recomputed by subtraction, so taking the adapter out is exact in any dtype. The sum is formed in float32
    (float64 for float64 weights) and rounded once to the dtype of the weight. Applications on one model nest: the last
    put in comes out first. Which way round a weight is stored is told by the module: its class, and the flag
    ``is_transposed`` of experts.
    """

    def __init__(
        self,
        adapter: Adapter,
        model: Any,
        *,
        component: str = "",
        layout: Layout | None = None,
        is_loss_allowed: bool = False,
    ) -> None:
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
        replaced = _replacements(adapter, model, places, is_loss_allowed=is_loss_allowed)
        self._kept: list[tuple[str, Any, Any, Any]] = []
        try:
            for name, (tensor, key) in replaced.items():
                self._replace(tensor, adapter.leftovers[key], name)
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

    def _replace(self, tensor: Any, saved: NDArray[Any], name: str) -> None:
        import torch

        base = tensor.data
        numbers = np.float64 if base.dtype == torch.float64 else np.float32
        moved = torch.as_tensor(widened(saved, name, numbers), device=base.device).to(base.dtype).contiguous()
        if not bool(torch.isfinite(moved.float()).all()):
            raise AdapterError(
                "a saved tensor is beyond the range of the model's dtype", key=name, found=str(base.dtype)
            )
        self._kept.append((name, tensor, base, moved))
        tensor.data = moved

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
    """Where a site is: the module, its weight (or fused parameter), the part of it, and the weight's bare name."""

    module: Any
    weight: Any
    part: Part | None
    name: str

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


def _is_addable(tensor: Any) -> bool:
    return tensor.is_floating_point() and tensor.element_size() > 1 and not tensor.is_meta


def _check_places(places: Mapping[str, _Place]) -> None:
    """Each weight is changed once, is a plain parameter, and holds numbers that something can be added to."""
    taken: dict[int, list[tuple[str, Part | None]]] = {}
    for site, place in places.items():
        weight = place.weight
        if not _is_addable(weight) or hasattr(place.module, "parametrizations") or hasattr(place.module, "weight_g"):
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


def _bare(path: str) -> str:
    """A path in the model without the levels that PEFT has put around its layers."""
    return ".".join(part for part in path.split(".") if part != "base_layer")


def _replacements(
    adapter: Adapter, model: Any, places: Mapping[str, _Place], *, is_loss_allowed: bool
) -> dict[str, tuple[Any, str]]:
    """Name → the tensor of the model that a saved one takes the place of, and the key of that."""
    if not adapter.leftovers:
        return {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    tensors: dict[str, Any] = {_bare(name): tensor for name, tensor in named}
    weights = {site: place.name for site, place in places.items()}
    try:
        placement = placed(adapter.leftovers, weights, tensors, _is_addable)
        if placement.unplaced and not is_loss_allowed:
            error = refusal(placement.unplaced[0], adapter.leftovers, tensors, "model")
            error.hint = "leave it out with is_loss_allowed=True"
            raise error
        _check_shared(adapter, placement.found, tensors, weights, _embeddings_of(model))
    except AdapterError as error:
        error.file = error.file or (adapter.provenance.path and str(adapter.provenance.path))
        raise
    return {name: (tensors[name], key) for name, key in placement.found.items()}


def _embeddings_of(model: Any) -> set[str]:
    """The names of the weights of the model's embeddings."""
    import torch

    modules = model.named_modules(remove_duplicate=False)
    return {f"{_bare(path)}.weight" for path, one in modules if isinstance(one, torch.nn.Embedding)}


def _check_shared(
    adapter: Adapter,
    found: Mapping[str, str],
    tensors: Mapping[str, Any],
    weights: Mapping[str, str],
    embeddings: set[str],
) -> None:
    """A saved tensor whose place several modules share moves them all: right for an embedding, and for no head."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    changed = set(weights.values())
    for name, key in found.items():
        for other in names[id(tensors[name])]:
            if other == name:
                continue
            is_alike = other in found and np.array_equal(adapter.leftovers[key], adapter.leftovers[found[other]])
            is_followed = other not in found and name in embeddings
            if other in changed or not (is_alike or is_followed):
                raise AdapterError(
                    "the adapter saved a tensor that the model shares between modules, and would change both",
                    key=name,
                    found=f"one parameter with {other}",
                    hint="untie the two first: give the head a parameter of its own",
                )


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
        return _Place(module, module.weight, part, f"{_bare(found[0])}.weight")
    above, _, name = path.rpartition(".")  # a fused parameter is named itself, not by a module
    holders = paths.find(above) if module is None and part is not None else []
    owners = [_unwrapped(modules[one]) for one in holders]
    if len(owners) == 1 and hasattr(getattr(owners[0], name, None), "dtype"):
        return _Place(owners[0], getattr(owners[0], name), part, f"{_bare(holders[0])}.{name}")
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
