"""Factors as a GGUF file has them, where they are not plain rows of numbers: in blocks, or in llama.cpp's order.

ΔW = scale · B · A            widened, turned and put in order when they are asked for, and let go after it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Expanded
from lorascope.adapter.low_rank import product_spectrum
from lorascope.formats.gguf_file import dense, dense_shape, is_in_blocks
from lorascope.formats.gguf_names import unpermuted


class _Widened(Mapping[str, NDArray[Any]]):
    """Role → factor, made anew at each access."""

    def __init__(self, raw: Mapping[str, NDArray[Any]], keys: Mapping[str, str], heads: int, is_turned: bool) -> None:
        self._raw, self._keys, self._heads, self._is_turned = raw, keys, heads, is_turned

    def __getitem__(self, role: str) -> NDArray[Any]:
        tensor = dense(self._raw[role])
        if role == "A":
            return tensor.T if self._is_turned else tensor
        return unpermuted(tensor, self._heads, self._keys[role]) if self._heads else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


@dataclass(frozen=True, eq=False, kw_only=True)
class GgufPair(Expanded):
    """ΔW = scale · B · A.

    Args:
        raw: B and A as views of the file.
        heads: in how many heads the rows of B are to be put back; 0 where they are in order.
    """

    kind: ClassVar[str] = "lora"
    raw: Mapping[str, NDArray[Any]]
    heads: int = 0

    @classmethod
    def of(
        cls,
        B: NDArray[Any],
        A: NDArray[Any],
        keys: Mapping[str, str],
        *,
        heads: int = 0,
        is_turned: bool = False,
        **others: Any,
    ) -> GgufPair:
        """The update of two tensors of the file; ``is_turned`` where A is stored as [in, rank]."""
        raw = {"B": B, "A": A}
        rank, in_ = dense_shape(A)[::-1] if is_turned else dense_shape(A)
        return cls(
            stored=_Widened(raw, keys, heads, is_turned),
            shape=(dense_shape(B)[0], in_),
            dim=rank,
            raw=raw,
            keys=keys,
            heads=heads,
            is_transposed=others.get("layer") == "embedding",
            **others,
        )

    @property
    def rank(self) -> int:
        """The columns of B."""
        return self.dim

    @property
    def dtype(self) -> str:
        """That of the factors; blocks are widened to float32, which is exact."""
        return "/".join(dict.fromkeys(one.name for one in self._dtypes()))

    @property
    def factor_dtype(self) -> np.dtype[Any]:
        """The wider of the two: no number changes."""
        return max(self._dtypes(), key=lambda dtype: dtype.itemsize)

    def _dtypes(self) -> list[np.dtype[Any]]:
        return [np.dtype(np.float32) if is_in_blocks(one) else one.dtype for one in self.raw.values()]

    @property
    def _is_wide(self) -> bool:
        return False

    def _check_factors(self, *, is_wide_allowed: bool) -> None:
        """The file holds every number of them."""

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.part("B", dtype), self.part("A", dtype)

    def spectrum(self) -> NDArray[np.float64] | None:
        """The singular values of ΔW, descending."""
        B, A, scale = self.factors(np.float64)
        return product_spectrum(B, A, scale, self._key)
