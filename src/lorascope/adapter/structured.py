"""What every update but the plain one shares: tensors under roles, and what can be computed from them.

    Expanded   ΔW = scale · B · A, where B and A are worked out from what is stored: ``lorascope.adapter.additive``
    Dense      ΔW is additive, but of full rank: ``lorascope.adapter.additive``
    Relative   ΔW depends on the base weight (DoRA, OFT, IA3 …): ``lorascope.adapter.relative``

A parametrisation subclasses one of them and writes its formula once. Nothing is computed before it is asked for, one
site at a time; a matrix larger than ``MAX_DENSE`` is refused.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter.low_rank import read_only
from lorascope.adapter.rows import Rows, add_rows
from lorascope.adapter.update import Factors, Layer, Need
from lorascope.adapter.widening import as_matrix, check_room, laid_out, resolved_axes, scaled_bias, widened
from lorascope.errors import AdapterError

MAX_MEASURED = 1 << 25
"""Numbers that ΔW may have where it must be formed in full to be measured (256 MiB in float64)."""

MAX_WORK = 1 << 32
"""Multiplications, about, that finding singular values may take: some seconds."""

_BLOCK = 1 << 22


def dense_norm(delta: NDArray[Any]) -> float:
    """‖ΔW‖_F of a matrix in full, block by block; it is scaled first, since squares of large entries overflow."""
    flat = delta.reshape(-1)
    largest = float(max(flat.max(initial=0.0), -flat.min(initial=0.0)))
    if not largest:
        return 0.0
    parts = (flat[begin : begin + _BLOCK] / largest for begin in range(0, flat.size, _BLOCK))
    return largest * math.hypot(*(float(np.linalg.norm(part)) for part in parts))


def dense_spectrum(delta: NDArray[Any]) -> NDArray[np.float64]:
    """The singular values of a matrix in full, descending."""
    return np.asarray(np.linalg.svd(delta, compute_uv=False), np.float64)


@dataclass(frozen=True, eq=False, kw_only=True)
class Structured(ABC):
    """An update as the tensors of a parametrisation.

    Args:
        stored: role → tensor, in the dtype of the file.
        keys: role → the tensor's name in the file, for messages and for writing back.
        shape: (out, in); −1 on an axis that only the base knows.
        dim: the rank that the trainer chose.
        scale: the resolved factor.
        layer, kernel, is_transposed, alpha, bias, is_bias_whole, scalar: as in ``LowRank``.
    """

    stored: Mapping[str, NDArray[Any]]
    shape: tuple[int, int]
    dim: int
    scale: float = 1.0
    keys: Mapping[str, str] = field(default_factory=dict[str, str])
    layer: Layer = "linear"
    kernel: tuple[int, ...] = ()
    is_transposed: bool = False
    alpha: float | None = None
    bias: NDArray[Any] | None = None
    is_bias_whole: bool = False
    scalar: float = 1.0

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if isinstance(self.stored, dict | MappingProxyType):  # another mapping makes them when they are asked for
            tensors = {role: read_only(tensor) for role, tensor in self.stored.items()}
            object.__setattr__(self, "stored", MappingProxyType(tensors))
        object.__setattr__(self, "scale", float(self.scale))
        if not math.isfinite(self.scale):
            raise AdapterError("the scale is not a finite number", key=self._key, found=self.scale)
        if self.kernel and self.shape[1] not in (-1, math.prod(self.kernel)):
            raise AdapterError(
                "the kernel does not fit the update",
                key=self._key,
                expected=f"{math.prod(self.kernel)} columns",
                found=self.shape[1],
            )

    @property
    def _key(self) -> str:
        return next(iter(self.keys.values()), self.kind)

    @property
    def base_shape(self) -> tuple[int, ...]:
        """The stored weight's shape: [out, in]; [in, out] if transposed; [out, *kernel]; [out] of a norm."""
        out, in_ = self.shape
        if self.kernel:
            return (out, *self.kernel)
        if self.layer == "norm":
            return (out,)
        return (in_, out) if self.is_transposed else (out, in_)

    @property
    @abstractmethod
    def rank(self) -> int:
        """An upper bound of the rank of ΔW; −1 where only the base knows."""

    @property
    @abstractmethod
    def needs(self) -> Need:
        """What must be there before ΔW is known."""

    @abstractmethod
    def factors(self, dtype: DTypeLike = np.float32) -> Factors:
        """B and A in ``dtype``, and the scale."""

    @abstractmethod
    def norm(self) -> float:
        """‖ΔW‖_F in float64."""

    @abstractmethod
    def spectrum(self) -> NDArray[np.float64] | None:
        """The singular values of ΔW, descending; None where they cannot be had in bounded time."""

    @abstractmethod
    def apply(self, x: NDArray[Any]) -> NDArray[Any]:
        """x ΔWᵀ for x [..., in], in the dtype of x."""

    @property
    def dtype(self) -> str:
        """The stored dtype; names joined by ``/`` where the tensors differ."""
        return "/".join(dict.fromkeys(tensor.dtype.name for tensor in self.stored.values()))

    def part(self, role: str, dtype: DTypeLike) -> NDArray[Any]:
        """The tensor of a role in ``dtype``.

        Raises:
            AdapterError: where a value is NaN or infinite.
        """
        return widened(self.stored[role], self.keys.get(role, role), dtype)

    def resolved(self, base_shape: tuple[int, ...]) -> Self:
        """The same update with the axes that only the base knows filled in from the shape of its weight.

        Raises:
            AdapterError: where the known axes do not fit.
        """
        shape, kernel, layer = resolved_axes(self, base_shape, self._key)
        return replace(self, shape=shape, kernel=kernel, layer=layer)

    def transposed(self, is_transposed: bool) -> Self:
        """The same ΔW for a linear base that is stored as [in, out], or that is not.

        Raises:
            AdapterError: where what is stored has the layout of the base.
        """
        return replace(self, is_transposed=is_transposed)

    def rescaled(self, scale: float) -> Self:
        """The same update with another scale, times ``scalar``."""
        return replace(self, scale=scale * self.scalar)

    def delta_weight(self, dtype: DTypeLike = np.float32, *, base: NDArray[Any] | None = None) -> NDArray[Any]:
        """ΔW in full, in the layout of the base weight.

        Args:
            dtype: of the result and of the computation.
            base: the base weight in its own layout, where ``needs`` says so.

        Raises:
            AdapterError: where the base is needed and not given, does not fit, or ΔW has no room.
        """
        update = self if base is None else self.resolved(base.shape)
        check_room(*update.shape, key=self._key)
        weight = None if base is None else as_matrix(base, is_transposed=self.is_transposed).astype(dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            delta = np.asarray(update._delta(np.dtype(dtype), weight), dtype)
        if not bool(np.isfinite(delta).all()):
            raise AdapterError("ΔW is beyond the range of the dtype", key=self._key, found=np.dtype(dtype).name)
        return laid_out(delta, update.kernel, is_transposed=self.is_transposed, is_flat=self.layer == "norm")

    @abstractmethod
    def _delta(self, dtype: np.dtype[Any], base: NDArray[Any] | None) -> NDArray[Any]:
        """ΔW [out, in] with its scale; ``base`` is W [out, in] where it was given."""

    @abstractmethod
    def rows(self, dtype: DTypeLike = np.float32) -> Rows:
        """What forms rows of ΔW [out, in], scale included, one block after another."""

    def add_to(self, matrix: NDArray[Any], factor: float = 1.0) -> None:
        """Add factor · ΔW to a floating matrix [out, in], in place, block by block.

        Raises:
            AdapterError: where the shape is not known, or ΔW is beyond the range of the matrix's dtype.
        """
        add_rows(matrix, self.rows(matrix.dtype), factor, self._key)

    def delta_bias(self, dtype: DTypeLike = np.float32, *, base: NDArray[Any] | None = None) -> NDArray[Any] | None:
        """scale · bias, the bias as it is where it is whole, or None."""
        return scaled_bias(self.bias, 1.0 if self.is_bias_whole else self.scale, self._key, dtype)

    def _whole(self) -> NDArray[Any]:
        """ΔW [out, in] in float64, of an additive update."""
        self._check_shape_known()
        if math.prod(self.shape) > MAX_MEASURED:
            raise AdapterError(
                "ΔW is too large to be measured: it is not of low rank, so it would have to be formed in full",
                key=self._key,
                expected=f"at most {MAX_MEASURED} numbers",
                found=f"{self.shape[0]} × {self.shape[1]}",
                code="too-large",
            )
        with np.errstate(over="ignore", invalid="ignore"):
            delta = self._delta(np.dtype(np.float64), None)
        if not bool(np.isfinite(delta).all()):
            raise AdapterError("ΔW is beyond the range of float64", key=self._key)
        return delta

    def _spectrum_in_full(self) -> NDArray[np.float64] | None:
        if min(self.shape) ** 2 * max(self.shape) > MAX_WORK or math.prod(self.shape) > MAX_MEASURED:
            return None
        return dense_spectrum(self._whole())

    def _check_shape_known(self) -> None:
        if -1 in self.shape:
            raise AdapterError(
                "the shape of ΔW is not in the file",
                key=self._key,
                found=f"{self.kind} of shape {list(self.shape)}",
                hint="give the base weight, or `resolved(base_shape)`",
            )
