"""``LowRank``: the plain update, ΔW = scale · B · A with B [out, rank] and A [rank, in]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter.rows import Rows, add_rows
from lorascope.adapter.update import Factors, Layer, Need
from lorascope.adapter.widening import check_room, laid_out, name_of, resolved_axes, scaled_bias, widened
from lorascope.errors import AdapterError


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view


def product_spectrum(B: NDArray[Any], A: NDArray[Any], scale: float, key: str) -> NDArray[np.float64]:
    """The min(out, in, rank) singular values of scale · B · A, by QR of both and the SVD of the small core.

    By QR and not from the Gram matrices, which would square the condition numbers.

    Raises:
        AdapterError: where ΔW is beyond the range of float64.
    """
    if 0 in (*B.shape, *A.shape):
        return np.zeros(0, np.float64)
    core, largest = _core(B, A, key)
    if largest == 0.0:
        count = int(min(B.shape[0], A.shape[1], B.shape[1]))
        return np.zeros(count, np.float64)
    values = np.asarray(np.linalg.svd(core / largest, compute_uv=False), np.float64)
    return abs(scale) * largest * values


def product_norm(B: NDArray[Any], A: NDArray[Any], scale: float, key: str) -> float:
    """‖scale · B · A‖_F = |scale| · ‖R_B R_Aᵀ‖_F with B = Q_B R_B and Aᵀ = Q_A R_A.

    Raises:
        AdapterError: where ΔW is beyond the range of float64.
    """
    core, largest = _core(B, A, key)
    if largest == 0.0:
        return 0.0
    return abs(scale) * largest * float(np.linalg.norm(core / largest))  # squares of large entries overflow


def _core(B: NDArray[Any], A: NDArray[Any], key: str) -> tuple[NDArray[Any], float]:
    with np.errstate(over="ignore", invalid="ignore"):
        core = _triangle(B) @ _triangle(A.T).T
    largest = float(np.abs(core).max(initial=0.0))
    if not np.isfinite(largest):
        raise AdapterError("ΔW is beyond the range of float64", key=key)
    return core, largest


def _triangle(array: NDArray[Any]) -> NDArray[Any]:
    """R of the QR factorisation; NumPy's overloads do not say that ``mode="r"`` gives an array."""
    return cast("NDArray[Any]", np.linalg.qr(array, mode="r"))


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
        layout: how sure that is of a linear layer: "stated" of all layers at once, so that the base's own layer
            decides; "open" where nothing in the file tells, and PEFT asks the base; "unknown" where it is not known
            whether PEFT asked it; "fixed" where the update is in the base's own layout.
        alpha: what the file says; a fact, never used.
        keys: the names of B and A in the file, for messages.
        bias: [out], where the layer's bias changes too, by scale · bias.
        is_bias_whole: whether it changes by ``bias`` as it is, without the scale.
        scalar: a factor in ``scale`` that is no alpha/rank, which another scale does not take the place of.

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
    bias: NDArray[Any] | None = None
    layout: Literal["stated", "open", "unknown", "fixed"] = "stated"
    is_bias_whole: bool = False
    scalar: float = 1.0

    kind: ClassVar[str] = "lora"

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
        if self.bias is not None and self.bias.shape != (B.shape[0],):
            raise AdapterError(
                "the bias does not fit the factor B",
                key=self.keys[0],
                expected=f"shape [{B.shape[0]}]",
                found=list(self.bias.shape),
            )
        object.__setattr__(self, "B", read_only(B))
        object.__setattr__(self, "A", read_only(A))
        if self.bias is not None:
            object.__setattr__(self, "bias", read_only(self.bias))
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
    def dim(self) -> int:
        """The same as ``rank``."""
        return self.rank

    @property
    def dtype(self) -> str:
        """The stored dtype; two names joined by ``/`` where B and A differ."""
        B, A = self.B.dtype, self.A.dtype
        return name_of(B) if B == A else f"{name_of(B)}/{name_of(A)}"

    @property
    def needs(self) -> Need:
        """Nothing: B, A and scale are all there is."""
        return "nothing"

    @property
    def stored(self) -> Mapping[str, NDArray[Any]]:
        """B, A, and the bias where there is one."""
        return {"B": self.B, "A": self.A} | ({} if self.bias is None else {"bias": self.bias})

    def resolved(self, base_shape: tuple[int, ...]) -> LowRank:
        """The same update for a base weight of that shape: a matrix gets the kernel of a convolution.

        Raises:
            AdapterError: where it does not fit.
        """
        _, kernel, layer = resolved_axes(self, base_shape, self.keys[0])
        return replace(self, kernel=kernel, layer=layer)

    def transposed(self, is_transposed: bool) -> LowRank:
        """The same ΔW for a linear base that is stored as [in, out], or that is not."""
        return replace(self, is_transposed=is_transposed)

    def rescaled(self, scale: float) -> LowRank:
        """The same update with another scale, times ``scalar``."""
        return replace(self, scale=scale * self.scalar)

    def factors(self, dtype: DTypeLike = np.float32) -> Factors:
        """B and A widened to ``dtype``, and the scale.

        Raises:
            AdapterError: where a stored value is NaN or infinite, or too large for ``dtype``.
        """
        return Factors(widened(self.B, self.keys[0], dtype), widened(self.A, self.keys[1], dtype), self.scale)

    def norm(self) -> float:
        """‖ΔW‖_F in float64, from the r × r core."""
        B, A, scale = self.factors(np.float64)
        return product_norm(B, A, scale, self.keys[0])

    def spectrum(self) -> NDArray[np.float64] | None:
        """The min(out, in, rank) singular values of ΔW, descending."""
        B, A, scale = self.factors(np.float64)
        return product_spectrum(B, A, scale, self.keys[0])

    def apply(self, x: NDArray[Any]) -> NDArray[Any]:
        """x ΔWᵀ for x [..., in] (a convolution's x are unfolded patches); ΔW is not formed.

        The computation runs in the floating dtype of ``x``.
        """
        B, A, scale = self.factors(x.dtype)
        return scale * ((x @ A.T) @ B.T)

    def delta_weight(self, dtype: DTypeLike = np.float32, *, base: NDArray[Any] | None = None) -> NDArray[Any]:
        """ΔW in full, in the layout of the base weight; out × in numbers, so ask for it only when needed."""
        check_room(*self.shape, key=self.keys[0])
        B, A, scale = self.factors(dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            delta = scale * (B @ A)
        if not bool(np.isfinite(delta).all()):
            raise AdapterError("ΔW is beyond the range of the dtype", key=self.keys[0], found=np.dtype(dtype).name)
        return laid_out(delta, self.kernel, is_transposed=self.is_transposed)

    def rows(self, dtype: DTypeLike = np.float32) -> Rows:
        """What forms rows of ΔW [out, in], scale included, one block after another."""
        B, A, scale = self.factors(dtype)
        return lambda block: scale * (B[block] @ A)

    def add_to(self, matrix: NDArray[Any], factor: float = 1.0) -> None:
        """Add factor · ΔW to a floating matrix [out, in], in place, block by block.

        Raises:
            AdapterError: where ΔW is beyond the range of the matrix's dtype.
        """
        add_rows(matrix, self.rows(matrix.dtype), factor, self.keys[0])

    def delta_bias(self, dtype: DTypeLike = np.float32, *, base: NDArray[Any] | None = None) -> NDArray[Any] | None:
        """scale · bias, the bias as it is where it is whole, or None."""
        return scaled_bias(self.bias, 1.0 if self.is_bias_whole else self.scale, self.keys[0], dtype)
