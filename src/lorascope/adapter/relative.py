"""Updates whose ΔW depends on the base weight (DoRA, OFT, IA3 …): W → moved(W).

A kind writes ``_moved``, or subclasses ``InPlace`` and writes ``_move``, which changes a weight block by block.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter.rows import Rows, check_range, row_blocks
from lorascope.adapter.structured import Structured
from lorascope.adapter.update import Factors, Need
from lorascope.errors import AdapterError


class Relative(Structured):
    """A change that depends on the base weight: W → moved(W)."""

    @abstractmethod
    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        """The weight [out, in] after the change, a new array, from W [out, in], in the dtype of W."""

    def _move(self, weight: NDArray[Any]) -> None:
        """Change W [out, in] in place."""
        weight[...] = self._moved(weight)

    def add_to(self, matrix: NDArray[Any], factor: float = 1.0) -> None:
        """Change the base weight [out, in], floating, in place.

        Raises:
            AdapterError: where it does not fit, a number is beyond the range of its dtype, or a factor is given.
        """
        if factor != 1.0:
            raise AdapterError(
                "an update that is relative to the base weight has no multiples", key=self._key, found=f"{factor:g}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            self._move(matrix)
        for block in row_blocks(matrix.shape):
            check_range(matrix[block], "the changed weight", self._key)

    def rows(self, dtype: DTypeLike = np.float32) -> Rows:
        """Refused, as ``factors``.

        Raises:
            AdapterError: always.
        """
        raise self._needs_base()

    @property
    def rank(self) -> int:
        """min(out, in): nothing less is known without the base; −1 where the shape is not known either."""
        return min(self.shape)

    @property
    def needs(self) -> Need:
        """The base weight."""
        return "base weight"

    def _needs_base(self) -> AdapterError:
        return AdapterError(
            f"an update of the kind {self.kind} is relative to the base weight: without it ΔW is not known",
            key=self._key,
            hint="`lorascope bake BASE ADAPTER -o TUNED`, then `lorascope extract BASE TUNED -o LORA --error 0.01` "
            "makes LoRA of it; in Python, delta_weight(base=W)",
        )

    def factors(self, dtype: DTypeLike = np.float32) -> Factors:
        """Refused: ΔW is not known without the base.

        Raises:
            AdapterError: always.
        """
        raise self._needs_base()

    def norm(self) -> float:
        """Refused, as ``factors``.

        Raises:
            AdapterError: always.
        """
        raise self._needs_base()

    def spectrum(self) -> NDArray[np.float64] | None:
        """None: not known without the base."""
        return None

    def apply(self, x: NDArray[Any]) -> NDArray[Any]:
        """Refused, as ``factors``.

        Raises:
            AdapterError: always.
        """
        raise self._needs_base()

    def _delta(self, dtype: np.dtype[Any], base: NDArray[Any] | None) -> NDArray[Any]:
        if base is None:
            raise self._needs_base()
        return self._moved(base) - base


class InPlace(Relative):
    """A ``Relative`` update that needs no second weight beside the one that it changes."""

    @abstractmethod
    def _move(self, weight: NDArray[Any]) -> None:
        """Change W [out, in] in place."""

    def _moved(self, base: NDArray[Any]) -> NDArray[Any]:
        moved = base.copy()
        self._move(moved)
        return moved
