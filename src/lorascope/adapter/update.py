"""What an adapter does to one weight matrix: the protocol that every kind of update meets.

    W → W + ΔW        ΔW = scale · B · A for the plain kind, ``LowRank``

Updates are immutable and lazy: what they hold may be views of a memory-mapped file in the file's own dtype, and is
widened only when a computation asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter.rows import Rows

Layer = Literal["linear", "conv1d", "conv2d", "conv3d", "embedding", "norm"]
"""The kind of base layer that a site is."""

Need = Literal["nothing", "dense room", "base shape", "base weight"]
"""What must be there before ΔW is known: nothing, room for out × in numbers, the shape of the base weight, or it."""


class Factors(NamedTuple):
    """ΔW = scale · B · A, with B [out, rank] and A [rank, in] in one floating dtype."""

    B: NDArray[Any]
    A: NDArray[Any]
    scale: float


@runtime_checkable
class Update(Protocol):
    """What an adapter does to one base weight, of shape [out, in] and stored as ``base_shape``."""

    kind: ClassVar[str]
    """The name of the parametrisation: ``lora``, ``loha`` …"""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of ΔW as a matrix; a convolution has in = channels · kernel.

        An axis that only the base knows is −1 (``needs`` is then not "nothing").
        """
        ...

    @property
    def base_shape(self) -> tuple[int, ...]:
        """Shape of the base weight as it is stored; −1 where only the base knows."""
        ...

    @property
    def is_transposed(self) -> bool:
        """Whether the base weight is stored as [in, out]."""
        ...

    @property
    def rank(self) -> int:
        """An upper bound of the rank of ΔW: the columns of B in ``factors``."""
        ...

    @property
    def dim(self) -> int:
        """The rank that the trainer chose; a LoHa of dim 4 has updates of rank up to 16."""
        ...

    @property
    def scale(self) -> float:
        """The resolved factor in ΔW = scale · B · A."""
        ...

    @property
    def alpha(self) -> float | None:
        """The alpha that the file states, a fact about the file; nothing computes with it."""
        ...

    @property
    def layer(self) -> Layer:
        """The kind of base layer."""
        ...

    @property
    def kernel(self) -> tuple[int, ...]:
        """(channels, *kernel) of a convolution, else empty."""
        ...

    @property
    def bias(self) -> NDArray[Any] | None:
        """The stored change of the layer's bias, or None: it changes by scale · bias, or by bias as it is."""
        ...

    @property
    def is_bias_whole(self) -> bool:
        """Whether the layer's bias changes by ``bias`` as it is, which no scale multiplies."""
        ...

    @property
    def dtype(self) -> str:
        """The dtype of the stored tensors, such as ``float16``."""
        ...

    @property
    def needs(self) -> Need:
        """What must be there before ΔW is known."""
        ...

    @property
    def stored(self) -> Mapping[str, NDArray[Any]]:
        """The tensors that the update is made of, by role, in the dtype of the file."""
        ...

    def resolved(self, base_shape: tuple[int, ...]) -> Update:
        """The same update with the axes that only the base knows filled in from the shape of its weight."""
        ...

    def transposed(self, is_transposed: bool) -> Update:
        """The same ΔW for a linear base that is stored as [in, out], or that is not."""
        ...

    def rescaled(self, scale: float) -> Update:
        """The same update with another scale; a ``scalar`` that the file states beside it still multiplies ΔW."""
        ...

    def factors(self, dtype: DTypeLike = np.float32) -> Factors:
        """B, A in ``dtype`` and the scale."""
        ...

    def norm(self) -> float:
        """‖ΔW‖_F."""
        ...

    def spectrum(self) -> NDArray[np.float64] | None:
        """The singular values of ΔW, descending; None where they cannot be had in bounded time."""
        ...

    def apply(self, x: NDArray[Any]) -> NDArray[Any]:
        """x ΔWᵀ for x of shape [..., in]."""
        ...

    def delta_weight(self, dtype: DTypeLike = np.float32, *, base: NDArray[Any] | None = None) -> NDArray[Any]:
        """ΔW in full, in the layout of the base weight; ``base`` is W where the update needs it."""
        ...

    def rows(self, dtype: DTypeLike = np.float32) -> Rows:
        """What forms rows of ΔW [out, in] one block after another, scale included, of an additive update."""
        ...

    def add_to(self, matrix: NDArray[Any], factor: float = 1.0) -> None:
        """Add factor · ΔW to a floating matrix [out, in], in place; it is W where the update needs the base."""
        ...

    def delta_bias(self, dtype: DTypeLike = np.float32, *, base: NDArray[Any] | None = None) -> NDArray[Any] | None:
        """The change of the layer's bias, None where there is none; ``base`` is the bias of the base layer."""
        ...
