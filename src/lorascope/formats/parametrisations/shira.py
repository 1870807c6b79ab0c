"""SHiRA: a sparse ΔW, its entries and their places.

    ΔW[rows_i, columns_i] += weight_i          weight [n]   indices [2, n]

The shape of ΔW is not in the file.

Source: Bhardwaj et al., https://arxiv.org/abs/2406.13175; https://github.com/huggingface/peft,
src/peft/tuners/shira/layer.py.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Dense
from lorascope.errors import AdapterError
from lorascope.formats.config_file import positive_integer
from lorascope.formats.parametrisation import Parametrisation, Parts

_RANK = 32
"""``r`` of PEFT where a configuration does not state it."""


class SHiRA(Dense):
    """ΔW[rows_i, columns_i] += weight_i."""

    kind: ClassVar[str] = "shira"

    def _places(self) -> NDArray[np.int64]:
        return self.stored["indices"].astype(np.int64)

    def resolved(self, base_shape: tuple[int, ...]) -> Self:
        """The same update for a base weight of that shape.

        Raises:
            AdapterError: where an entry lies outside it.
        """
        update = super().resolved(base_shape)
        rows, columns = self._places().max(axis=1)
        if rows >= update.shape[0] or columns >= update.shape[1]:
            raise AdapterError(
                "the update does not fit the base weight",
                key=self._key,
                expected=f"at least {rows + 1} × {columns + 1}",
                found=list(base_shape),
            )
        return update

    def _formed(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        delta = np.zeros(self.shape, dtype)
        np.add.at(delta, tuple(self._places()), self.part("weight", dtype))
        return delta


def build_shira(parts: Parts) -> SHiRA:
    """The update of one site from the roles weight and indices, which files from Windows hold as float32.

    Raises:
        AdapterError: where the places are not whole numbers from 0 on, one pair for each entry.
    """
    count = parts.tensor("weight", None).shape[0]
    indices = parts.tensors.get("indices")
    if indices is None:
        parts.tensor("indices")
        raise AssertionError  # the line above has raised
    key = parts.keys.get("indices", "indices")
    if indices.shape != (2, count) or indices.dtype.kind not in "iuf":
        raise AdapterError(
            f"{key} does not hold the places of the entries",
            key=parts.site,
            expected=f"integers [2, {count}]",
            found=f"{indices.dtype.name} {list(indices.shape)}",
        )
    # bounded before they are taken for integers, since a float may be beyond them
    places = indices.astype(np.float64)
    if not bool(((places >= 0) & (places < 2**31) & (places == np.floor(places))).all()):
        raise AdapterError(f"{key} holds a place that is none", key=parts.site, expected="whole numbers from 0 on")
    return SHiRA(
        stored=parts.named("weight", "indices"),
        keys=parts.keys,
        shape=(-1, -1),
        dim=positive_integer(parts.options, "r", _RANK) or _RANK,
    )


PARAMETRISATION = Parametrisation(
    name="shira",
    title="SHiRA",
    formula="ΔW[rows_i, columns_i] += weight_i",
    reference="https://arxiv.org/abs/2406.13175",
    exactness="dense",
    build=build_shira,
    defaults="no scale",
    oracles=("peft",),
)
