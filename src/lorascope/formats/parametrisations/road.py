"""RoAd: the outputs of a layer are turned and stretched in pairs.

    y → R y:   y_1 ← a_1 y_1 − b_1 y_2,   y_2 ← b_2 y_1 + a_2 y_2          a = α cos θ, b = α sin θ
    W → R W,   bias → R bias

The pairs lie half a group apart in each group of g outputs. One (θ, α) for each pair is ``road_1``, one for each output
``road_2``, one more for a than for b ``road_4``; the file has out/2, out or 2·out of them.

Source: Liao and Monz, https://arxiv.org/abs/2409.00119; https://github.com/huggingface/peft,
src/peft/tuners/road/layer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Relative
from lorascope.errors import AdapterError
from lorascope.formats.config_file import positive_integer
from lorascope.formats.parametrisation import Parametrisation, Parts

Variant = Literal["road_1", "road_2", "road_4"]

_GROUP = 64
"""``group_size`` of PEFT where a configuration does not state it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RoAd(Relative):
    """W → R W.

    Args:
        variant: how many (θ, α) there are.
    """

    kind: ClassVar[str] = "road"
    variant: Variant = "road_1"

    def _columns(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """a and b of each output as [groups, 2, g/2]."""
        theta, alpha = self.part("theta", dtype), self.part("alpha", dtype)
        a, b = alpha * np.cos(theta), alpha * np.sin(theta)
        half = self.dim // 2
        if self.variant == "road_1":
            a, b = (np.repeat(part.reshape(-1, 1, half), 2, axis=1) for part in (a, b))
        elif self.variant == "road_4":
            a, b = a.reshape(-1, 2, self.dim)[:, 0], b.reshape(-1, 2, self.dim)[:, 1]
        return a.reshape(-1, 2, half), b.reshape(-1, 2, half)

    def _turned(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """R applied to the first axis."""
        a, b = self._columns(outputs.dtype)
        pairs = outputs.reshape(-1, 2, self.dim // 2, outputs.size // outputs.shape[0])
        crossed = np.stack((-pairs[:, 1], pairs[:, 0]), axis=1)
        return (pairs * a[..., None] + crossed * b[..., None]).reshape(outputs.shape)

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        return self._turned(base)

    def delta_bias(self, dtype: DTypeLike = np.float32, *, base: NDArray[Any] | None = None) -> NDArray[Any] | None:
        """R bias − bias; None without a base bias, since what is zero is not turned.

        Raises:
            AdapterError: where the bias does not fit.
        """
        if base is None:
            return None
        if base.shape != self.shape[:1]:
            raise AdapterError(
                "the bias does not fit the update", key=self._key, expected=[self.shape[0]], found=list(base.shape)
            )
        bias = base.astype(dtype)
        return self._turned(bias) - bias


def build_road(parts: Parts) -> RoAd:
    """The update of one site from the roles theta and alpha.

    Raises:
        AdapterError: where the variant is none, or the numbers do not make whole groups.
    """
    variant = parts.options.get("variant", "road_1")
    per_output: dict[Variant, tuple[int, int]] = {"road_1": (2, 1), "road_2": (1, 1), "road_4": (1, 2)}
    found: Variant | None = next((name for name in per_output if name == variant), None)
    if found is None:
        raise AdapterError(
            "an unknown variant of RoAd", key="variant", expected=" or ".join(per_output), found=ascii(variant)[:80]
        )
    count = parts.tensor("theta", None).shape[0]
    parts.tensor("alpha", count)
    group = positive_integer(parts.options, "group_size", _GROUP) or _GROUP
    times, over = per_output[found]
    out, rest = divmod(count * times, over)
    if rest or group % 2 or out % group:
        raise AdapterError(
            "the angles do not make whole groups of pairs",
            key=parts.site,
            expected=f"a number of outputs that an even group_size {group} divides",
            found=f"{count} angles ({found})",
        )
    return RoAd(stored=parts.named("theta", "alpha"), keys=parts.keys, shape=(out, -1), dim=group, variant=found)


PARAMETRISATION = Parametrisation(
    name="road",
    title="RoAd",
    formula="W → R W, bias → R bias, R turning and stretching pairs of outputs",
    reference="https://arxiv.org/abs/2409.00119",
    exactness="relative to the base weight",
    build=build_road,
    defaults="variant road_1, groups of 64",
    oracles=("peft",),
)
