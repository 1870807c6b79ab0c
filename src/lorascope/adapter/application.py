"""An adapter put into a PyTorch model: W + ΔW while it is on, the very same W when it is off."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

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
        planned = [(_weight_at(modules, site, prefix), update, site) for site, update in adapter.items()]
        for module, update, site in planned:
            _check_fit(module, update, site)
        self._kept: list[tuple[str, Any, Any, Any]] = []
        try:
            for module, update, site in planned:
                weight = module.weight
                wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
                delta = _delta_at(module, update, site, np.float64 if wide == torch.float64 else np.float32)
                added = torch.as_tensor(np.ascontiguousarray(delta), device=weight.device).reshape(weight.shape)
                base = weight.data
                moved = (base.to(wide) + added).to(weight.dtype)
                self._kept.append((site, weight, base, moved))
                weight.data = moved
                self._put_bias(module, update, site)
        except BaseException:
            self.remove()
            raise

    def _put_bias(self, module: Any, update: Update, site: str) -> None:
        import torch

        bias = getattr(module, "bias", None)
        wide = np.float64 if module.weight.dtype == torch.float64 else np.float32
        stored = None if bias is None else bias.detach().cpu().double().numpy().astype(wide)
        delta = update.delta_bias(wide, base=stored)
        if delta is None:
            return
        if bias is None:
            raise AdapterError("the adapter changes a bias that the layer has not", key=site)
        base = bias.data
        added = torch.as_tensor(np.ascontiguousarray(delta), device=bias.device)
        moved = (base.to(added.dtype) + added).to(bias.dtype)
        self._kept.append((site, bias, base, moved))
        bias.data = moved

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


def _delta_at(module: Any, update: Update, site: str, dtype: DTypeLike) -> NDArray[Any]:
    is_turned = _is_conv1d_of_gpt2(module) and not update.is_transposed
    base: NDArray[Any] | None = None
    if update.needs in ("base shape", "base weight"):
        base = module.weight.detach().cpu().double().numpy().astype(dtype)
        base = base.T if is_turned and base is not None else base
    try:
        delta = update.delta_weight(dtype, base=base)
    except AdapterError as error:
        error.key = error.key or site
        raise
    return delta.T if is_turned else delta


def _is_conv1d_of_gpt2(module: Any) -> bool:
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers")


def _weight_at(modules: dict[str, Any], site: str, prefix: str) -> Any:
    path = site[len(prefix) :] if prefix and site.startswith(prefix) else site
    module = modules.get(path)
    if module is None or not hasattr(module, "weight"):
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
    return module


def _check_fit(module: Any, update: Update, site: str) -> None:
    found: tuple[int, ...] = tuple(module.weight.shape)
    expected = update.base_shape
    if _is_conv1d_of_gpt2(module) and not update.is_transposed:  # PEFT transposes for it whatever the config says
        found = found[::-1]
    is_flat_kernel = len(found) > 2 and len(expected) == 2 and not update.is_transposed
    if is_flat_kernel:  # a convolution whose kernel only the base knows
        found = tuple(module.weight.flatten(1).shape)
    fits = len(found) == len(expected) and all(e in (-1, f) for e, f in zip(expected, found, strict=True))
    if not fits:
        raise AdapterError(
            "the update does not fit the weight of the model",
            key=site,
            expected=f"a weight of shape {list(update.base_shape)}",
            found=list(module.weight.shape),
            hint="is this the base that the adapter was made for?",
        )
