"""The sites of a file whose keys are ``<name>.<suffix>``: kohya's, LyCORIS's and ComfyUI's files alike.

Every suffix has one meaning, so a site is told from its own keys and one file may mix kinds:

    lora_up, lora_down[, lora_mid]  LoRA, LoCon     hada_…  LoHa     lokr_…  LoKr     diff, diff_b, w_norm, b_norm  full
    oft_blocks[, rescale]  OFT, BOFT     a1, a2, b1, b2  GLoRA     weight with on_input  IA3     set_weight  replaced

beside which stand alpha (the scale is alpha/dim; alpha missing or 0: 1; a LoKr with both factors whole: 1 whatever
alpha is), scalar (a factor of ΔW) and dora_scale (DoRA around LoRA, LoHa or LoKr).

Source: https://github.com/KohakuBlueleaf/LyCORIS, lycoris/modules; https://github.com/kohya-ss/sd-scripts, networks;
https://github.com/comfyanonymous/ComfyUI, comfy/weight_adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Layer, LowRank, Update
from lorascope.adapter.structured import Structured
from lorascope.adapter.widening import is_floating
from lorascope.errors import AdapterError
from lorascope.formats.contents import Tensors
from lorascope.formats.pairs import Scale
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.parametrisations.dora import DoRA, decorated
from lorascope.formats.scalars import stated_alpha

_SHARED = ""

SUFFIXES: Mapping[str, tuple[str, str]] = {
    "lora_up.weight": ("lora", "B"),
    "lora_down.weight": ("lora", "A"),
    "lora_mid.weight": ("lora", "mid"),
    **{f"hada_{role}": ("loha", role) for role in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{role}": ("lokr", role) for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{f"{role}.weight": ("glora", role) for role in ("a1", "a2", "b1", "b2")},
    "diff": ("full", "diff"),
    "w_norm": ("full", "diff"),
    "diff_b": (_SHARED, "diff_b"),
    "b_norm": (_SHARED, "diff_b"),
    "oft_blocks": ("lycoris-oft", "blocks"),
    "rescale": ("lycoris-oft", "rescale"),
    "weight": ("lycoris-ia3", "weight"),
    "on_input": ("lycoris-ia3", "on_input"),
    "alpha": (_SHARED, "alpha"),
    "dora_scale": (_SHARED, "dora_scale"),
    "scalar": (_SHARED, "scalar"),
}
"""What follows a site's name → the parametrisation it belongs to, and its role there."""

DOTTED_SUFFIXES: Mapping[str, tuple[str, str]] = SUFFIXES | {
    "lora_B.weight": ("lora", "B"),
    "lora_A.weight": ("lora", "A"),
    "lora_B.default.weight": ("lora", "B"),
    "lora_A.default.weight": ("lora", "A"),
    "lora_B": ("lora", "B"),
    "lora_A": ("lora", "A"),
    "lora.up.weight": ("lora", "B"),
    "lora.down.weight": ("lora", "A"),
    "lora_linear_layer.up.weight": ("lora", "B"),
    "lora_linear_layer.down.weight": ("lora", "A"),
    "lora_B.bias": ("lora", "bias"),
    "set_weight": ("replaced", "weight"),
    "reshape_weight": (_SHARED, "reshape_weight"),
}
"""The same for files whose names keep their dots."""

_REFUSED: Mapping[str, str] = {
    "lambda_layer": "T-LoRA: ΔW depends on the time step, and on a start that is not in the file",
    "q_layer.weight": "T-LoRA: ΔW depends on the time step, and on a start that is not in the file",
    "p_layer.weight": "T-LoRA: ΔW depends on the time step, and on a start that is not in the file",
    "lokr_t1": "a Tucker core of the first factor of a LoKr, which no known writer makes",
    "bm.weight": "GLoRA with a Tucker core, which no known writer makes",
    "bias_values": "a sparse change of the bias",
    "bias_indices": "a sparse change of the bias",
    "lora_A.bias": "a bias of the first factor",
    "set_bias": "a bias that is replaced",
}
_SCALED = ("lora", "locon", "loha", "lokr", "glora")
_DECORATED = ("lora", "locon", "loha", "lokr")


@dataclass
class Group:
    """The keys of one name: role → key, by parametrisation."""

    roles: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    def shared(self, role: str) -> str | None:
        """The key of a role that no parametrisation owns."""
        return self.roles.get(_SHARED, {}).get(role)

    @property
    def kinds(self) -> list[str]:
        """The parametrisations that the keys speak of."""
        return [kind for kind in self.roles if kind != _SHARED]


def split_key(key: str, suffixes: Mapping[str, tuple[str, str]]) -> tuple[str, str] | None:
    """(name, suffix) with the longest suffix that is known, or None.

    >>> split_key("lora_unet_x.lora_up.weight", SUFFIXES), split_key("x.other", SUFFIXES)
    (('lora_unet_x', 'lora_up.weight'), None)
    """
    words = key.split(".")
    for count in (3, 2, 1):
        suffix = ".".join(words[-count:])
        if len(words) > count and (suffix in suffixes or suffix in _REFUSED):
            return ".".join(words[:-count]), suffix
    return None


def grouped(
    keys: Iterable[str], suffixes: Mapping[str, tuple[str, str]], is_name: Callable[[str], bool]
) -> tuple[dict[str, Group], list[str]]:
    """Name → its keys, and the keys that belong to none.

    Raises:
        AdapterError: where two keys have one role, or a suffix is of a kind that is not read.
    """
    groups: dict[str, Group] = {}
    left: list[str] = []
    for key in keys:
        parsed = split_key(key, suffixes)
        if parsed is None or not is_name(parsed[0]):
            left.append(key)
            continue
        name, suffix = parsed
        if suffix in _REFUSED:
            raise AdapterError(f"recognised, but not read by this version: {_REFUSED[suffix]}", key=key)
        kind, role = suffixes[suffix]
        roles = groups.setdefault(name, Group()).roles.setdefault(kind, {})
        if role in roles:
            raise AdapterError(f"two tensors are the {role} of one site", key=name, found=f"{roles[role]} and {key}")
        roles[role] = key
    for name in list(groups):
        left += _dropped(groups, name)
    return groups, left


def _dropped(groups: dict[str, Group], name: str) -> list[str]:
    """Take out of a group what makes no update: a plain weight, or keys without a kind; their keys."""
    roles = groups[name].roles
    left: list[str] = []
    if "on_input" not in roles.get("lycoris-ia3", {"on_input": ""}):
        left += roles.pop("lycoris-ia3").values()
    if set(roles) <= {_SHARED} and "diff_b" not in roles.get(_SHARED, {}):
        left += roles.pop(_SHARED, {}).values()
        del groups[name]
    return left


@dataclass
class Builder:
    """Makes updates of groups, and keeps what was noticed on the way.

    Args:
        tensors: all tensors of the file.
        is_alpha_usual: whether such files state alpha, so that a missing one is an assumption.
        is_kohya_oft: whether the constraint of an OFT is read as kohya's scripts do.
    """

    tensors: Tensors
    is_alpha_usual: bool = True
    is_kohya_oft: bool = False
    assumed: list[str] = field(default_factory=list[str])
    tucker: list[str] = field(default_factory=list[str])
    reshaped: list[str] = field(default_factory=list[str])

    def update(self, site: str, group: Group) -> Update:
        """The update of one site.

        Raises:
            AdapterError: where its keys speak of two kinds, one is missing, or shapes do not fit.
        """
        if len(group.kinds) > 1:
            raise AdapterError("two kinds of update at one site", key=site, found=" and ".join(sorted(group.kinds)))
        kind = group.kinds[0] if group.kinds else "full"
        keys = dict(group.roles.get(kind, {}))
        if kind == "lora":
            kind = self._checked_pair(site, keys)
        elif kind == "lycoris-oft" and "blocks" in keys and self.tensors[keys["blocks"]].ndim == 4:
            kind = "lycoris-boft"
        for role in ("alpha", "diff_b"):
            owner = {"alpha": "lycoris-oft lycoris-boft", "diff_b": "full"}[role]
            if (key := group.shared(role)) and kind in owner.split():
                keys[role] = key
        update = built(
            kind,
            Parts(
                site=site,
                tensors=_with_kernel_axes({role: self.tensors[key] for role, key in keys.items()}),
                keys=keys,
                scale_of=self._scale_of(site, kind, group),
                layer=cast("Layer", "linear"),
                options={"is_kohya": self.is_kohya_oft},
            ),
        )
        if key := group.shared("scalar"):
            update = _with_scalar(update, self._scalar(key), key, site)
        if (key := group.shared("diff_b")) and kind != "full":
            update = _with_bias(update, self.tensors[key], key, site)
        if key := group.shared("dora_scale"):
            update = self._dora(update, kind, key, site)
        if key := group.shared("reshape_weight"):
            self._check_reshaped(update, key, site)
        return update

    def _checked_pair(self, site: str, keys: Mapping[str, str]) -> str:
        """``locon`` where there is a Tucker core, else ``lora``; both halves must be there."""
        if "A" in keys and "B" in keys:
            if "mid" in keys:
                self.tucker.append(site)
                return "locon"
            return "lora"
        if "A" not in keys and "B" not in keys:
            raise AdapterError(
                f"{next(iter(keys.values()))} stands without lora_up and lora_down", key=site, found=", ".join(keys)
            )
        half, other = ("A", "B") if "A" in keys else ("B", "A")
        raise AdapterError(
            f"{keys[half]} has no partner: {other} is missing at this site",
            key=site,
            expected="both factors",
            found=f"only {half}",
        )

    def _scale_of(self, site: str, kind: str, group: Group) -> Callable[[int], Scale]:
        alpha_key, scalar_key = group.shared("alpha"), group.shared("scalar")
        alpha = None
        if alpha_key and kind in _SCALED:
            alpha = stated_alpha(self.tensors[alpha_key], alpha_key)
        factor = 1.0 if scalar_key is None else self._scalar(scalar_key)

        def scale_of(dim: int) -> Scale:
            if kind not in _SCALED or not dim:  # a LoKr with both factors whole has no dim: scale 1
                return Scale(factor, alpha)
            if alpha is None:
                if self.is_alpha_usual:
                    self.assumed.append(site)
                return Scale(factor, None, is_assumed=True)
            return Scale(alpha / dim * factor, alpha)

        return scale_of

    def _scalar(self, key: str) -> float:
        return stated_alpha(self.tensors[key], key) or 0.0

    def _dora(self, update: Update, kind: str, key: str, site: str) -> DoRA:
        if kind not in _DECORATED:
            raise AdapterError("a dora_scale beside an update that has no DoRA", key=site, found=kind)
        magnitude = self.tensors[key]
        if not is_floating(magnitude) or not magnitude.size:
            raise AdapterError(f"{key} holds no floating-point numbers", key=site, found=magnitude.dtype.name)
        count = magnitude.size
        if magnitude.ndim > 1 and count > 1 and magnitude.shape[:2] == (1, count):
            # one value for each input channel, also where PEFT's convolutions would have the output axis
            channels = update.kernel[0] if update.kernel else update.shape[1]
            is_flat_kernel = magnitude.ndim > 2 and not update.kernel and channels % count == 0
            if count == channels or is_flat_kernel:
                around = decorated(update, np.ones(update.shape[0], magnitude.dtype), key, site)
                return replace(around, stored={**update.stored, "magnitude": magnitude}, axis="in")
        return decorated(update, magnitude, key, site)

    def _check_reshaped(self, update: Update, key: str, site: str) -> None:
        wanted = self.tensors[key]
        if wanted.dtype.kind not in "iu" or wanted.reshape(-1).tolist() != list(update.base_shape):
            raise AdapterError(
                f"{key} is not the shape of the update",
                key=site,
                expected=list(update.base_shape),
                found=f"{wanted.dtype.name} {wanted.reshape(-1)[:4].tolist()}",
            )
        self.reshaped.append(site)


def _with_kernel_axes(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The tensors, B of a convolution with an axis for each of A's: LyCORIS's DyLoRA leaves it flat."""
    if "A" in tensors and "B" in tensors and tensors["B"].ndim == 2 < tensors["A"].ndim:
        B = tensors["B"]
        return tensors | {"B": B.reshape(*B.shape, *(1,) * (tensors["A"].ndim - 2))}
    return tensors


def _with_bias(update: Update, bias: NDArray[Any], key: str, site: str) -> Update:
    """The update with a change of the bias that the scale does not multiply."""
    fits = is_floating(bias) and bias.shape == (update.shape[0],) and update.bias is None
    if not fits or not isinstance(update, LowRank | Structured):
        raise AdapterError(
            f"{key} does not fit the update", key=site, expected=f"[{update.shape[0]}]", found=list(bias.shape)
        )
    return replace(update, bias=bias, is_bias_whole=True)


def _with_scalar(update: Update, scalar: float, key: str, site: str) -> Update:
    """The update that knows which part of its scale is the file's ``scalar``."""
    if not isinstance(update, LowRank | Structured):
        raise AdapterError(f"{key} stands beside an update that has no scale", key=site, found=update.kind)
    return replace(update, scalar=scalar)


def kind_of(updates: Iterable[Update]) -> str:
    """The parametrisation of a whole file; several are joined by ``+``, and LoCon includes its plain pairs."""
    kinds = {update.kind for update in updates}
    return "+".join(sorted(kinds - {"lora"} if "locon" in kinds else kinds))


def split_parts(update: Update, parts: int) -> bool:
    """Whether B is block-diagonal in ``parts`` blocks, as sd-scripts writes a fused layer that it trained in parts.

    Only two rows are looked at: the first lives in the first block of columns, the last in the last.
    """
    if not isinstance(update, LowRank) or update.layer != "linear" or not parts or update.rank % parts:
        return False
    width = update.rank // parts
    first, last = update.B[0].astype(np.float32), update.B[-1].astype(np.float32)
    return bool(width) and not first[width:].any() and not last[:-width].any() and bool(first.any() or last.any())
