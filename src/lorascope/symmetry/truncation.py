"""The best approximation of an update by one of lower rank, and exactly what it leaves out.

    ΔW = U S Vᵀ   ⟹   the nearest matrix of rank k is U_k S_k V_kᵀ, off by √(Σ_{i>k} σ_i²)

in every unitarily invariant norm (Eckart & Young 1936, Mirsky 1960). U, S and V come from QR of both factors and the
SVD of the core, so the work is (out + in) · rank², and what is kept does not depend on the gauge. Where the cut parts
equal singular values there are several nearest matrices, all as near.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import LorascopeError
from lorascope.symmetry.canonical import SVD, thin_svd


@dataclass(frozen=True)
class Cut:
    """How much of an update is kept; where several are given, the smallest of their ranks.

    Args:
        rank: at most so many singular values.
        energy: the fewest that hold this share of Σ σ², in (0, 1].
        ratio: those of at least this share of σ₁, in (0, 1].
        error: the fewest that leave at most this relative error, in [0, 1).

    Raises:
        LorascopeError: where one is out of its range.

    >>> Cut(rank=2).of(np.array([3.0, 2.0, 1.0])), Cut(energy=0.9).of(np.array([3.0, 2.0, 1.0]))
    (2, 2)
    >>> Cut(energy=2.0)
    Traceback (most recent call last):
    ...
    lorascope.errors.LorascopeError: energy: there is no such share (expected above 0, at most 1, found 2.0)
    """

    rank: int | None = None
    energy: float | None = None
    ratio: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise LorascopeError(
                "an update of rank 0 is none", key="rank", expected="a whole number of at least 1", found=self.rank
            )
        for name in ("energy", "ratio"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise LorascopeError("there is no such share", key=name, expected="above 0, at most 1", found=share)
        if self.error is not None and not 0 <= self.error < 1:
            raise LorascopeError(
                "there is no such relative error", key="error", expected="at least 0, below 1", found=self.error
            )

    @property
    def is_open(self) -> bool:
        """Whether nothing is asked for, so that nothing is cut."""
        return self.rank is None and self.energy is None and self.ratio is None and self.error is None

    def of(self, S: NDArray[Any]) -> int:
        """How many of the singular values (descending) are kept; 0 of a zero update."""
        kept = int(np.count_nonzero(S > 0))
        if kept == 0:
            return 0
        relative = np.asarray(S[:kept], np.float64) / float(S[0])
        tails = _tails(relative)  # [kept + 1], tails[k] = √(Σ_{i ≥ k} σ²) / σ₁
        limits = [kept]
        if self.rank is not None:
            limits.append(self.rank)
        if self.ratio is not None:
            limits.append(int(np.count_nonzero(relative >= self.ratio)))
        if self.energy is not None:
            limits.append(_fewest(tails, math.sqrt(1 - self.energy)))
        if self.error is not None:
            limits.append(_fewest(tails, self.error))
        return max(1, min(limits))


def _tails(relative: NDArray[np.float64]) -> NDArray[np.float64]:
    """√ of the sums of squares from each place to the end, small ones first so that none is lost; the last is 0."""
    return np.sqrt(np.append(np.cumsum((relative**2)[::-1])[::-1], 0.0))


def _fewest(tails: NDArray[np.float64], share: float) -> int:
    """The fewest values whose tail is at most this share of the whole."""
    return int(np.argmax(tails <= share * tails[0]))


def beyond_rounding(B: NDArray[Any], A: NDArray[Any]) -> tuple[SVD, int]:
    """The thin SVD of B A, and how many of its values exceed what rounding makes: the rank that can be told.

    Of the product itself that is eps · rank · Σ_j ‖b_j‖ ‖a_j‖, where its terms cancel (as they do in a gauge that is
    badly conditioned); of the SVD, eps · max(out, in) · σ₁. So neither padding of the factors nor their gauge counts.

    Args:
        B: [out, rank], the rank 0 or more.
        A: [rank, in].

    >>> B = np.array([[1.0, 1.0], [0.0, 1e-30]])
    >>> beyond_rounding(B, np.eye(2))[1], beyond_rounding(np.zeros((2, 0)), np.zeros((0, 3)))[1]
    (1, 0)
    """
    out, in_ = B.shape[0], A.shape[1]
    if B.shape[1] == 0:
        return SVD(np.zeros((out, 0), B.dtype), np.zeros(0, B.dtype), np.zeros((0, in_), A.dtype)), 0
    svd = thin_svd(B, A)
    terms = float(np.linalg.norm(B, axis=0) @ np.linalg.norm(A, axis=1))
    rounding = float(np.finfo(svd.S.dtype).eps) * max(B.shape[1] * terms, max(out, in_) * float(svd.S[0]))
    return svd, int(np.count_nonzero(svd.S > rounding))


class Truncated(NamedTuple):
    """B [out, k] and A [k, in], balanced, of the part that is kept; ``norm`` of the whole, ``error`` of the rest.

    ``error`` is ‖ΔW − B A‖_F beside the rounding of B and A to their dtype.
    """

    B: NDArray[Any]
    A: NDArray[Any]
    norm: float
    error: float

    @property
    def relative_error(self) -> float:
        """``error`` / ``norm``; 0 where the update is zero."""
        return self.error / self.norm if self.norm > 0 else 0.0


def truncated(svd: SVD, kept: int) -> Truncated:
    """The ``kept`` leading singular values of one site as balanced factors, B = U √S and A = √S Vᵀ.

    Args:
        svd: U [out, k], S [k], Vh [k, in].
        kept: at least 0; the result has rank 1 at least, of zeros if need be.

    >>> from lorascope.symmetry import thin_svd
    >>> half = truncated(thin_svd(np.diag([4.0, 3.0]), np.eye(2)), 1)
    >>> half.B @ half.A, half.norm, half.error
    (array([[4., 0.],
           [0., 0.]]), 5.0, 3.0)
    """
    S = np.asarray(svd.S, np.float64)
    count = max(1, kept)
    root = np.sqrt(S[:count]) * (np.arange(min(count, len(S))) < kept)
    B = np.zeros((svd.U.shape[0], count), svd.U.dtype)
    A = np.zeros((count, svd.Vh.shape[1]), svd.Vh.dtype)
    B[:, : len(root)] = svd.U[:, :count] * root.astype(svd.U.dtype)
    A[: len(root)] = root.astype(svd.Vh.dtype)[:, None] * svd.Vh[:count]
    return Truncated(B, A, math.hypot(*S), math.hypot(*S[kept:]))
