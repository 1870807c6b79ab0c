"""An adapter put into a PyTorch model: W + ΔW while it is on, the very same W when it is off."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter.site import Part, path_and_part
from lorascope.errors import AdapterError, MissingExtraError

if TYPE_CHECKING:
    from lorascope.adapter.adapter import Adapter
    from lorascope.adapter.update import Update


class Application:
    """ΔW of every site added to a model's weights, until ``remove`` (or the end of a ``with`` block).

    The base weights are kept, not recomputed by subtraction, so taking the adapter out is exact in any dtype.
    The sum is formed in float32 (float64 for float64 weights) and rounded once to the dtype of the weight.
    Applications on one model nest: the last put in comes out first.
    """

    def __init__(self, adapter: Adapter, model: Any, *, component: str = "") -> None:
        try:
            import torch
        except ImportError as error:
            raise MissingExtraError.of("torch", "learn", "putting an adapter into a model") from error
        prefix = f"{component}." if component and not component.endswith(".") else component
        modules: dict[str, Any] = dict(model.named_modules())
        planned = [(_place_of(modules, site, prefix), update, site) for site, update in adapter.items()]
        _check_places(planned)
        planned = [(place, place.facing(update), site) for place, update, site in planned]
        for place, update, site in planned:
            _check_fit(place, update, site)
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

    def facing(self, update: Update) -> Update:
        """The update in this module's layout: PEFT states once for all sites what holds for GPT-2's Conv1D alone."""
        is_linear = type(self.module).__name__ == "Linear" and type(self.module).__module__.startswith("torch.nn")
        if is_linear and update.layer == "linear" and update.is_transposed and hasattr(update, "__dataclass_fields__"):
            turned: Any = update
            return cast("Update", replace(turned, is_transposed=False))
        return update

    @property
    def is_conv1d_of_gpt2(self) -> bool:
        return type(self.module).__name__ == "Conv1D" and type(self.module).__module__.startswith("transformers")


def _check_places(planned: list[tuple[_Place, Update, str]]) -> None:
    """Each weight is changed once, is a plain parameter, and holds numbers that something can be added to."""
    taken: dict[int, list[tuple[str, Part | None]]] = {}
    for place, _, site in planned:
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
    is_turned = place.is_conv1d_of_gpt2 and not update.is_transposed
    base: NDArray[Any] | None = None
    if update.needs in ("base shape", "base weight"):
        base = _as_numpy(place.view(site), dtype)
        base = base.T if is_turned else base
    try:
        delta = update.delta_weight(dtype, base=base)
    except AdapterError as error:
        error.key = error.key or site
        raise
    return delta.T if is_turned else delta


def _place_of(modules: dict[str, Any], site: str, prefix: str) -> _Place:
    path, part = path_and_part(site[len(prefix) :] if prefix and site.startswith(prefix) else site)
    module = modules.get(path)
    if module is not None and hasattr(module, "weight"):
        return _Place(module, module.weight, part)
    above, _, name = path.rpartition(".")  # a fused parameter is named itself, not by a module
    parameter = getattr(modules.get(above), name, None)
    if module is None and part is not None and hasattr(parameter, "dtype"):
        return _Place(modules[above], parameter, part)
    tail = path.rsplit(".", 1)[-1]
    like = [name for name in modules if name.rsplit(".", 1)[-1] == tail][:2]
    raise AdapterError(
        "the model has no such layer",
        key=site,
        expected="a module path of the model that has a weight",
        found="no module of that name" if module is None else type(module).__name__,
        hint=f"the model has {', '.join(like)}; pass component= to drop a prefix"
        if like
        else "is this the base that the adapter was made for?",
    )


def _check_fit(place: _Place, update: Update, site: str) -> None:
    weight = place.view(site)
    found: tuple[int, ...] = tuple(weight.shape)
    expected = update.base_shape
    if place.is_conv1d_of_gpt2 and not update.is_transposed:  # PEFT transposes for it whatever the config says
        found = found[::-1]
    if len(found) > 2 and len(expected) == 2 and not update.is_transposed:  # a kernel that only the base knows
        found = tuple(weight.flatten(1).shape)
    fits = len(found) == len(expected) and all(e in (-1, f) for e, f in zip(expected, found, strict=True))
    if not fits:
        raise AdapterError(
            "the update does not fit the weight of the model",
            key=site,
            expected=f"a weight of shape {list(update.base_shape)}",
            found=list(weight.shape),
            hint="is this the base that the adapter was made for?",
        )
