"""LoKr: the Kronecker product of two matrices, each whole or itself of low rank.

    ΔW = scale · (w1 ⊗ w2)             w1 or w1_a [p, dim] w1_b [dim, q];  w2 or w2_a [s, dim] w2_b [dim, t · kernel]
    with a Tucker core t2 [dim, dim, *kernel], w2_a is [dim, s], w2_b [dim, t], and
    w2[o,i,k] = Σ t2[m,n,k] w2_a[m,o] w2_b[n,i]

    as one product:  B = B1 ⊗ B2,  A = A1 ⊗ A2  with  w = B A  and  B or A the identity where w is whole

A convolution is a matrix [out, channels · kernel]; since w1 has no kernel axes, flattening w2 alone flattens the
product. Files of 2023 factor this matrix as it is, so the kernel is then known to the base only.

Norm and spectrum come from the halves: ‖w1 ⊗ w2‖ = ‖w1‖ ‖w2‖; the singular values are all σᵢ(w1) σⱼ(w2).

Source: Edalati et al., KronA, https://arxiv.org/abs/2212.10650; https://github.com/KohakuBlueleaf/LyCORIS,
lycoris/modules/lokr.py; https://github.com/huggingface/peft, src/peft/tuners/lokr/layer.py.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Expanded
from lorascope.adapter.low_rank import product_norm, product_spectrum
from lorascope.adapter.rows import Rows
from lorascope.adapter.structured import dense_norm, dense_spectrum
from lorascope.adapter.widening import check_room
from lorascope.errors import AdapterError
from lorascope.formats.parametrisation import Parametrisation, Parts
from lorascope.formats.parametrisations.loha import convolution_layer

MAX_SPECTRUM = 1024  # of one half: its min(out, in)
MAX_PRODUCTS = 1 << 20
"""Products of singular values that ``spectrum`` forms."""

ROLES = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")


class LoKr(Expanded):
    """ΔW = scale · (w1 ⊗ w2)."""

    kind: ClassVar[str] = "lokr"

    @property
    def is_whole(self) -> bool:
        """Whether both factors are stored whole, so that the file tells no dim."""
        return "w1" in self.stored and "w2" in self.stored

    @property
    def rank(self) -> int:
        """The product of the ranks that the shapes of w1 and w2 allow."""
        return self._half_rank("1") * self._half_rank("2")

    def _half_shape(self, half: str) -> tuple[int, int]:
        if f"w{half}" in self.stored:
            whole = self.stored[f"w{half}"]
            return whole.shape[0], whole.size // whole.shape[0]
        left, right = self.stored[f"w{half}_a"], self.stored[f"w{half}_b"]
        if half == "2" and "t2" in self.stored:
            core = self.stored["t2"]
            return left.shape[1], right.shape[1] * (core.size // (core.shape[0] * core.shape[1]))
        return left.shape[0], right.shape[1]

    def _half_rank(self, half: str) -> int:
        bound = min(self._half_shape(half))
        if f"w{half}" in self.stored:
            return bound
        inner = self.stored["w2_a" if half == "2" and "t2" in self.stored else f"w{half}_b"]
        return min(bound, inner.shape[0])

    def _half(self, half: str, dtype: np.dtype[Any]) -> tuple[NDArray[Any] | None, NDArray[Any]]:
        """(None, w) of a whole half, else (w_a, w_b) as matrices with w = w_a w_b."""
        if f"w{half}" in self.stored:
            return None, self.part(f"w{half}", dtype).reshape(self._half_shape(half))
        left, right = self.part(f"w{half}_a", dtype), self.part(f"w{half}_b", dtype)
        if half == "2" and "t2" in self.stored:
            core = self.part("t2", dtype)
            core = core.reshape(*core.shape[:2], -1)
            left, right = left.T, np.einsum("mnk,ni->mik", core, right).reshape(core.shape[0], -1)
        return left, right

    def _whole_half(self, half: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        check_room(*self._half_shape(half), what=f"w{half}", key=self._key)
        left, right = self._half(half, dtype)
        return right if left is None else left @ right

    def _thin_half(self, half: str, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """B [p, rank] and A [rank, q] of one half, with ``_half_rank`` ranks."""
        left, right = self._half(half, dtype)
        rank = self._half_rank(half)
        if left is not None and left.shape[1] == rank:
            return left, right
        whole = self._whole_half(half, dtype)
        identity = np.eye(rank, dtype=dtype)
        return (identity, whole) if whole.shape[0] == rank else (whole, identity)

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        (B1, A1), (B2, A2) = self._thin_half("1", dtype), self._thin_half("2", dtype)
        return np.kron(B1, B2), np.kron(A1, A2)

    def rows(self, dtype: DTypeLike = np.float32) -> Rows:
        """What forms rows of ΔW, row i from rows i // s of w1 and i % s of w2."""
        w1, w2 = self._whole_half("1", np.dtype(dtype)), self._whole_half("2", np.dtype(dtype))

        def formed(block: slice) -> NDArray[Any]:
            upper, lower = np.divmod(np.arange(*block.indices(self.shape[0])), len(w2))
            product = w1[upper][:, :, None] * w2[lower][:, None, :]
            product *= self.scale
            return product.reshape(len(upper), -1)

        return formed

    def norm(self) -> float:
        """‖ΔW‖_F = |scale| ‖w1‖ ‖w2‖ in float64."""
        norms: list[float] = []
        for half in ("1", "2"):
            left, right = self._half(half, np.dtype(np.float64))
            norms.append(dense_norm(right) if left is None else product_norm(left, right, 1.0, self._key))
        norm = abs(self.scale) * norms[0] * norms[1]
        if not np.isfinite(norm):
            raise AdapterError("ΔW is beyond the range of float64", key=self._key)
        return norm

    def spectrum(self) -> NDArray[np.float64] | None:
        """The singular values of ΔW, descending: the products of those of the halves, zeros beyond a half's rank
        left out; None where a half has too many."""
        if self.rank > MAX_PRODUCTS or max(self._half_rank("1"), self._half_rank("2")) > MAX_SPECTRUM:
            return None
        values: list[NDArray[np.float64]] = []
        for half in ("1", "2"):
            left, right = self._half(half, np.dtype(np.float64))
            found = dense_spectrum(right) if left is None else product_spectrum(left, right, 1.0, self._key)
            values.append(found[: self._half_rank(half)])
        products = np.sort(np.multiply.outer(*values).reshape(-1))[::-1] * abs(self.scale)
        if not bool(np.isfinite(products).all()):
            raise AdapterError("ΔW is beyond the range of float64", key=self._key)
        return np.asarray(products, np.float64)

    def apply(self, x: NDArray[Any]) -> NDArray[Any]:
        """x ΔWᵀ for x [..., in], in the dtype of x; neither ΔW nor its factors are formed."""
        dtype = x.dtype
        columns = [self._half_shape(half)[1] for half in ("1", "2")]
        y = x.reshape(*x.shape[:-1], *columns)
        for half in ("2", "1"):  # the last axis, then the one before it
            left, right = self._half(half, dtype)
            y = y @ right.T if left is None else (y @ right.T) @ left.T
            y = np.swapaxes(y, -1, -2)
        return self.scale * y.reshape(*x.shape[:-1], self.shape[0])


def build_lokr(parts: Parts) -> LoKr:
    """The update of one site.

    The scale is ``parts.scale_of(dim)`` with the dim that the file tells: the rows of w2_b, else of w1_b. Where both
    factors are stored whole the file tells none and it is ``scale_of(0)``; the grammar knows the rule then (LyCORIS: 1
    whatever alpha is; PEFT: alpha/r of the configuration).

    Raises:
        AdapterError: where a half is missing, given twice, or the shapes do not fit one another.
    """
    for half in ("1", "2"):
        is_whole, is_factored = f"w{half}" in parts, f"w{half}_a" in parts or f"w{half}_b" in parts
        if is_whole == is_factored:
            raise AdapterError(
                f"the Kronecker factor w{half} is {'there twice' if is_whole else 'missing'}",
                key=parts.site,
                expected=f"w{half}, or w{half}_a and w{half}_b",
                found=", ".join(parts.tensors) or "nothing",
            )
    dims: dict[str, int] = {}
    if "w1" in parts:
        rows, columns = parts.tensor("w1", None, None).shape
    else:
        w1_b = parts.tensor("w1_b", None, None)
        dims["1"], columns = w1_b.shape
        rows = parts.tensor("w1_a", None, dims["1"]).shape[0]
    rows_2, size = _second_half(parts, dims)
    out, in_ = rows * rows_2, columns * int(np.prod(size, dtype=object))
    kernel = (columns * size[0], *size[1:]) if len(size) > 1 else ()
    dim = dims.get("2", dims.get("1", 0))
    scale = parts.scale_of(dim)
    return LoKr(
        stored=parts.named(*ROLES),
        keys={role: key for role, key in parts.keys.items() if role in ROLES},
        shape=(out, in_),
        dim=dim or max(min(rows, columns), min(rows_2, in_ // columns)),
        scale=scale.scale,
        alpha=scale.alpha,
        layer=convolution_layer(size[1:], parts) if kernel else parts.layer,
        kernel=kernel,
        is_transposed=parts.is_transposed and not kernel,
        bias=parts.tensor("bias", out) if "bias" in parts else None,
    )


def _second_half(parts: Parts, dims: dict[str, int]) -> tuple[int, tuple[int, ...]]:
    """Rows of w2, and its columns: (columns,) or (channels, *kernel)."""
    if "w2" in parts:
        if "t2" in parts:
            raise AdapterError("a Tucker core beside a whole w2", key=parts.site, found=", ".join(parts.tensors))
        w2 = parts.tensor("w2")
        if w2.ndim < 2:
            raise AdapterError("w2 is no matrix", key=parts.site, found=f"shape {list(w2.shape)}")
        return w2.shape[0], tuple(w2.shape[1:])
    w2_b = parts.tensor("w2_b", None, None)
    dims["2"], columns = w2_b.shape
    if "t2" not in parts:
        return parts.tensor("w2_a", None, dims["2"]).shape[0], (columns,)
    w2_a = parts.tensor("w2_a", None, None)
    core = parts.tensor("t2")
    kernel = tuple(core.shape[2:])
    convolution_layer(kernel, parts)
    parts.tensor("t2", w2_a.shape[0], dims["2"], *kernel)
    check_room(w2_a.shape[0], columns, *kernel, what="a Tucker core", key=parts.site)
    return w2_a.shape[1], (columns, *kernel)


def factorised(dimension: int, factor: int) -> tuple[int, int]:
    """Two numbers with that product, as PEFT's ``factorization`` chooses them.

    >>> factorised(256, -1), factorised(128, -1), factorised(127, -1), factorised(128, 4)
    ((16, 16), (8, 16), (1, 127), (4, 32))
    """
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    best = (1, dimension)
    highest = dimension if factor == -1 else factor
    low = 1
    while best[0] < best[1]:
        low += 1
        while dimension % low:
            low += 1
        if low + dimension // low > sum(best) or low > highest:
            break
        best = (low, dimension // low)
    return min(best), max(best)


PARAMETRISATION = Parametrisation(
    name="lokr",
    title="LoKr",
    formula="ΔW = scale · (w1 ⊗ w2)",
    reference="https://arxiv.org/abs/2212.10650",
    exactness="low rank, expanded",
    build=build_lokr,
    defaults="scale = alpha/dim; both factors whole: 1 in LyCORIS, alpha/r in PEFT",
    oracles=("peft", "lycoris-lora"),
)
