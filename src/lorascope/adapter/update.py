"""Updates: what an adapter does to one weight matrix.

``Update`` is the protocol that every kind of update meets; ``LowRank`` is the plain one,

    ΔW = scale · B · A        B: [out, rank]   A: [rank, in]

Values are immutable and lazy: the factors may be views of a memory-mapped file in the file's own dtype,
and are widened only when a computation asks for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.errors import AdapterError

Layer = Literal["linear", "conv1d", "conv2d", "conv3d", "embedding"]
"""The kind of base layer that a site is."""

Need = Literal["nothing", "base weight", "dense room"]
"""What an update needs before its ΔW is known: nothing, the base weight, or room for out × in numbers."""


class Factors(NamedTuple):
    """ΔW = scale · B · A, with B [out, rank] and A [rank, in] in one floating dtype."""

    B: NDArray[Any]
    A: NDArray[Any]
    scale: float


@runtime_checkable
class Update(Protocol):
    """What an adapter does to one base weight, of shape [out, in] and stored as ``base_shape``."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of ΔW as a matrix; a convolution has in = channels · kernel."""
        ...

    @property
    def base_shape(self) -> tuple[int, ...]:
        """Shape of the base weight as it is stored."""
        ...

    @property
    def is_transposed(self) -> bool:
        """Whether the base weight is stored as [in, out]."""
        ...

    @property
    def rank(self) -> int:
        """An upper bound of the rank of ΔW."""
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
    def dtype(self) -> str:
        """The dtype of the stored tensors, such as ``float16``."""
        ...

    @property
    def needs(self) -> Need:
        """What must be there before ΔW is known."""
        ...

    def factors(self, dtype: DTypeLike = np.float32) -> Factors:
        """B, A in ``dtype`` and the scale."""
        ...

    def norm(self) -> float:
        """‖ΔW‖_F."""
        ...

    def apply(self, x: NDArray[Any]) -> NDArray[Any]:
        """x ΔWᵀ for x of shape [..., in]."""
        ...

    def delta_weight(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """ΔW in full, in the layout of the base weight."""
        ...


def _triangle(array: NDArray[Any]) -> NDArray[Any]:
    """R of the QR factorisation; NumPy's overloads do not say that ``mode="r"`` gives an array."""
    return cast("NDArray[Any]", np.linalg.qr(array, mode="r"))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, eq=False)
class LowRank:
    """ΔW = scale · B · A.

    Args:
        B: [out, rank], any floating dtype that NumPy or ml-dtypes knows; kept as given, without a copy.
        A: [rank, in].
        scale: the resolved factor; a reader has settled alpha, rank and variants of them before.
        layer: the kind of the base layer.
        kernel: for a convolution, the shape (channels, *kernel) whose product is ``in``; else empty.
        is_transposed: whether the base stores its weight as [in, out] (GPT-2's Conv1D, embeddings).
        alpha: what the file says; a fact, never used.
        keys: the names of B and A in the file, for messages.

    Raises:
        AdapterError: where the shapes do not make a product, or the scale is not finite.

    >>> import numpy as np
    >>> update = LowRank(B=np.eye(3, 2), A=np.ones((2, 4)), scale=0.5)
    >>> update.shape, update.rank
    ((3, 4), 2)
    >>> round(update.norm(), 6)      # two rows of four halves
    1.414214
    """

    B: NDArray[Any]
    A: NDArray[Any]
    scale: float = 1.0
    layer: Layer = "linear"
    kernel: tuple[int, ...] = ()
    is_transposed: bool = False
    alpha: float | None = None
    keys: tuple[str, str] = ("B", "A")

    def __post_init__(self) -> None:
        B, A = self.B, self.A
        if B.ndim != 2 or A.ndim != 2 or B.shape[1] != A.shape[0]:
            raise AdapterError(
                "the two factors do not make a product",
                key=" and ".join(self.keys),
                expected="B [out, rank] and A [rank, in]",
                found=f"{list(B.shape)} and {list(A.shape)}",
            )
        if not math.isfinite(self.scale):
            raise AdapterError("the scale is not a finite number", key=self.keys[0], found=self.scale)
        if self.kernel and math.prod(self.kernel) != A.shape[1]:
            raise AdapterError(
                "the kernel does not fit the factor A",
                key=self.keys[1],
                expected=f"{math.prod(self.kernel)} columns",
                found=A.shape[1],
            )
        object.__setattr__(self, "B", _read_only(B))
        object.__setattr__(self, "A", _read_only(A))
        object.__setattr__(self, "scale", float(self.scale))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return int(self.B.shape[0]), int(self.A.shape[1])

    @property
    def base_shape(self) -> tuple[int, ...]:
        """The stored weight's shape: [out, in]; [in, out] if transposed; [out, *kernel] for kernels."""
        out, in_ = self.shape
        if self.kernel:
            return (out, *self.kernel)
        return (in_, out) if self.is_transposed else (out, in_)

    @property
    def rank(self) -> int:
        """The number of columns of B."""
        return int(self.B.shape[1])

    @property
    def dtype(self) -> str:
        """The stored dtype; two names joined by ``/`` where B and A differ."""
        names = dict.fromkeys((self.B.dtype.name, self.A.dtype.name))
        return "/".join(names)

    @property
    def needs(self) -> Need:
        """Nothing: B, A and scale are all there is."""
        return "nothing"

    def factors(self, dtype: DTypeLike = np.float32) -> Factors:
        """B and A widened to ``dtype``, and the scale.

        Raises:
            AdapterError: where a stored value is NaN or infinite, or too large for ``dtype``.
        """
        B, A = self._widened(self.B, self.keys[0], dtype), self._widened(self.A, self.keys[1], dtype)
        return Factors(B, A, self.scale)

    @staticmethod
    def _widened(stored: NDArray[Any], key: str, dtype: DTypeLike) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            array = stored.astype(dtype)
        if not bool(np.isfinite(array).all()):
            raise AdapterError(
                f"non-finite value in {key}",
                expected=f"finite numbers in {np.dtype(dtype).name}",
                found=f"NaN or infinity ({stored.dtype.name})",
                hint="the adapter diverged in training or the file was damaged; get it again or drop it",
            )
        return array

    def norm(self) -> float:
        """‖ΔW‖_F = |scale| · ‖R_B R_Aᵀ‖_F with B = Q_B R_B, Aᵀ = Q_A R_A, in float64.

        By QR and not from the Gram matrices, which would square the condition numbers.
        """
        B, A, scale = self.factors(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            core = _triangle(B) @ _triangle(A.T).T
        largest = float(np.abs(core).max(initial=0.0))
        if not np.isfinite(largest):
            raise AdapterError("ΔW is beyond the range of float64", key=self.keys[0])
        if largest == 0.0:
            return 0.0
        return abs(scale) * largest * float(np.linalg.norm(core / largest))  # squares of large entries overflow

    def apply(self, x: NDArray[Any]) -> NDArray[Any]:
        """x ΔWᵀ for x [..., in] (a convolution's x are unfolded patches); ΔW is not formed.

        The computation runs in the floating dtype of ``x``.
        """
        B, A, scale = self.factors(x.dtype)
        return scale * ((x @ A.T) @ B.T)

    def delta_weight(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """ΔW in full, in the layout of the base weight; out × in numbers, so ask for it only when needed."""
        B, A, scale = self.factors(dtype)
        delta = scale * (B @ A)
        return (delta.T if self.is_transposed else delta).reshape(self.base_shape)
