"""What every update but the plain one shares: tensors under roles, and what can be computed from them.

    Expanded   ΔW = scale · B · A, where B and A are worked out from what is stored (LoHa, LoKr, VeRA, AdaLoRA …)
    Dense      ΔW is additive, but of full rank: it is formed in full or not at all (RandLoRA, FourierFT, differences)
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

from lorascope.adapter.low_rank import LowRank, product_norm, product_spectrum, read_only
from lorascope.adapter.rows import Rows, add_rows, formed
from lorascope.adapter.update import Factors, Layer, Need
from lorascope.adapter.widening import MAX_FACTORS, as_matrix, check_room, laid_out, resolved_axes, scaled_bias, widened
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


class Expanded(Structured):
    """ΔW = scale · B · A with B [out, rank] and A [rank, in] worked out from the stored tensors."""

    @abstractmethod
    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """B and A, without the scale."""

    @property
    def needs(self) -> Need:
        """Nothing, unless the file does not tell the shape."""
        return "base shape" if -1 in self.shape else "nothing"

    def factors(self, dtype: DTypeLike = np.float32, *, is_wide_allowed: bool = False) -> Factors:
        """B and A in ``dtype``, and the scale; exact, worked out in that dtype.

        Args:
            is_wide_allowed: expand also where the rank bound reaches min(out, in), so that B and A together are
            larger than ΔW.

        Raises:
            AdapterError: where they would be larger than ΔW, or have no room.
        """
        self._check_factors(is_wide_allowed=is_wide_allowed)
        B, A = self._product(np.dtype(dtype))
        return Factors(B, A, self.scale)

    def _check_factors(self, *, is_wide_allowed: bool) -> None:
        self._check_shape_known()
        if self.rank >= min(self.shape) > 1 and self.rank > self.dim and not is_wide_allowed:
            raise AdapterError(
                "the update is not of low rank: its factors would be larger than ΔW",
                key=self._key,
                expected=f"a rank bound below min(out, in) = {min(self.shape)}",
                found=f"{self.rank} ({self.kind} of dim {self.dim})",
                hint="use delta_weight(), or factors(is_wide_allowed=True)",
            )
        rank = max(self.rank, 1)
        check_room(sum(self.shape), rank, what="the pair of factors of ΔW", key=self._key, limit=MAX_FACTORS)

    @property
    def _is_wide(self) -> bool:
        """Whether working out the factors costs more than forming ΔW."""
        return self.rank >= min(self.shape) or self.rank**2 * sum(self.shape) > 4 * MAX_WORK

    def as_low_rank(self) -> LowRank:
        """The plain update of the same ΔW, its factors worked out in float64 and stored in the widest stored dtype.

        Half precision is widened to float32, so that working out the products costs no digits.

        Raises:
            AdapterError: where the factors would be larger than ΔW.
        """
        outline = self.outline()
        factors = self.factors(np.float64)
        return replace(outline, B=factors.B.astype(outline.B.dtype), A=factors.A.astype(outline.A.dtype))

    @property
    def factor_dtype(self) -> np.dtype[Any]:
        """The dtype of ``as_low_rank``: half precision is widened, so that working out products costs no digits."""
        is_double = any(tensor.dtype == np.float64 for tensor in self.stored.values())
        return np.dtype(np.float64 if is_double else np.float32)

    def outline(self) -> LowRank:
        """``as_low_rank`` without its values: B and A have their shapes and dtypes, and take no memory.

        Raises:
            AdapterError: where the factors would be larger than ΔW.
        """
        self._check_factors(is_wide_allowed=False)
        nothing = np.zeros((), self.factor_dtype)
        return LowRank(
            np.broadcast_to(nothing, (self.shape[0], self.rank)),
            np.broadcast_to(nothing, (self.rank, self.shape[1])),
            self.scale,
            layer=self.layer,
            kernel=self.kernel,
            is_transposed=self.is_transposed,
            bias=self.bias,
            is_bias_whole=self.is_bias_whole,
        )

    def norm(self) -> float:
        """‖ΔW‖_F in float64, from factors where they are smaller than ΔW."""
        self._check_shape_known()
        if self._is_wide:
            return dense_norm(self._whole())
        B, A, scale = self.factors(np.float64)
        return product_norm(B, A, scale, self._key)

    def spectrum(self) -> NDArray[np.float64] | None:
        """The singular values of ΔW, descending; None where ΔW is too large and not of low rank."""
        self._check_shape_known()
        if self._is_wide:
            return self._spectrum_in_full()
        if self.rank**2 * sum(self.shape) > MAX_WORK:
            return None
        B, A, scale = self.factors(np.float64)
        return product_spectrum(B, A, scale, self._key)

    def apply(self, x: NDArray[Any]) -> NDArray[Any]:
        """x ΔWᵀ for x [..., in], in the dtype of x."""
        self._check_shape_known()
        if self._is_wide:
            check_room(*self.shape, key=self._key)
            return x @ self._delta(x.dtype, None).T
        B, A, scale = self.factors(x.dtype, is_wide_allowed=True)
        return scale * ((x @ A.T) @ B.T)

    def rows(self, dtype: DTypeLike = np.float32) -> Rows:
        """What forms rows of ΔW, from B and A."""
        B, A, scale = self.factors(dtype, is_wide_allowed=True)
        return lambda block: scale * (B[block] @ A)

    def _delta(self, dtype: np.dtype[Any], base: NDArray[Any] | None) -> NDArray[Any]:
        return formed(self.rows(dtype), self.shape, dtype)


class Dense(Structured):
    """An additive ΔW of full rank, formed in full."""

    @abstractmethod
    def _formed(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """ΔW [out, in], with the scale."""

    @property
    def rank(self) -> int:
        """min(out, in); −1 where only the base knows."""
        return min(self.shape)

    @property
    def needs(self) -> Need:
        """Room for ΔW, and the shape of the base where the file does not tell it."""
        return "base shape" if -1 in self.shape else "dense room"

    def factors(self, dtype: DTypeLike = np.float32) -> Factors:
        """Refused: ΔW is not of low rank.

        Raises:
            AdapterError: always.
        """
        raise AdapterError(
            f"a {self.kind} update is not of low rank, so it has no factors",
            key=self._key,
            hint="use delta_weight(), or extract a low-rank adapter from it",
        )

    def norm(self) -> float:
        """‖ΔW‖_F in float64."""
        return dense_norm(self._whole())

    def spectrum(self) -> NDArray[np.float64] | None:
        """The singular values of ΔW; None where they would take more than ``MAX_WORK``."""
        self._check_shape_known()
        return self._spectrum_in_full()

    def apply(self, x: NDArray[Any]) -> NDArray[Any]:
        """x ΔWᵀ for x [..., in], in the dtype of x."""
        self._check_shape_known()
        check_room(*self.shape, key=self._key)
        return x @ self._formed(x.dtype).T

    def rows(self, dtype: DTypeLike = np.float32) -> Rows:
        """The rows of ΔW, which is formed in full."""
        self._check_shape_known()
        return self._formed(np.dtype(dtype)).__getitem__

    def _delta(self, dtype: np.dtype[Any], base: NDArray[Any] | None) -> NDArray[Any]:
        self._check_shape_known()
        return self._formed(dtype)
