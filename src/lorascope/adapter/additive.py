"""Structured updates that depend on nothing but what is stored.

Expanded   ΔW = scale · B · A, where B and A are worked out from what is stored (LoHa, LoKr, VeRA, AdaLoRA …)
Dense      ΔW is of full rank: it is formed in full or not at all (RandLoRA, FourierFT, differences)
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter.low_rank import LowRank, product_norm, product_spectrum
from lorascope.adapter.rows import Rows, formed
from lorascope.adapter.structured import MAX_WORK, Structured, dense_norm
from lorascope.adapter.update import Factors, Need
from lorascope.adapter.widening import MAX_FACTORS, check_room
from lorascope.errors import AdapterError


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
            f"an update of the kind {self.kind} is not of low rank, so it has no factors",
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
