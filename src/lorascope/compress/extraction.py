"""``extract``: an adapter from two checkpoints, the difference of each weight cut to a low rank, streaming.

    ΔW = W' − W ≈ B A                                    the best of its rank, W the base and W' the tuned weight
    W' ≈ m ∘ (W + B A) / ‖W + B A‖                        DoRA, the norm and m of each output

Small differences are decomposed in full, large ones by a randomised range finder whose width is doubled until the
limits that were asked for are met; either way the error is measured against W' − W itself. A DoRA is found in turns:

    D  with rows d_o = ⟨w'_o, w_o + v_o⟩ / ‖w'_o‖²,  V = the best of its rank of D W' − W,  m_o = ⟨w'_o, direction_o⟩

which starts from d = ‖w‖ / ‖w'‖ (1 where w = 0), so that a change of lengths alone needs no V; m is the best beside V.

Source: the difference as kohya-ss/sd-scripts (``extract_lora_from_models.py``) and arcee-ai/mergekit
(``extract_lora``) take it; DoRA: Liu et al. (2024), arXiv 2402.09353, equation 5.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lorascope.adapter import Adapter, LowRank, Provenance, Update
from lorascope.adapter.rows import row_blocks
from lorascope.adapter.structured import MAX_WORK
from lorascope.adapter.update import Layer
from lorascope.adapter.widening import as_matrix
from lorascope.errors import AdapterError, LorascopeError
from lorascope.formats.base_names import base_name_of
from lorascope.formats.checkpoint import Checkpoint
from lorascope.formats.dtypes import cast_to, floating_dtype
from lorascope.formats.embedding_names import is_embedding
from lorascope.formats.parametrisations.dora import decorated
from lorascope.merge.method import Rows
from lorascope.merge.range_finder import low_rank
from lorascope.symmetry.canonical import SVD
from lorascope.symmetry.truncation import Cut, Truncated, truncated

_CONVOLUTIONS: Mapping[int, Layer] = {3: "conv1d", 4: "conv2d", 5: "conv3d"}
_FIRST_WIDTH = 64
_TURNS = 8


@dataclass(frozen=True)
class ExtractedSite:
    """``rank`` of the update, ``norm`` ‖W' − W‖_F, ``error`` ‖W' − what the adapter makes of W‖_F as written."""

    rank: int
    norm: float
    error: float

    @property
    def relative_error(self) -> float:
        """``error`` / ``norm``."""
        return self.error / self.norm if self.norm > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Extracted:
    """``adapter``: the result. ``sites``: what became of each.

    Args:
        adapter: of the sites that changed and were asked for.
        sites: site → rank and error.
        others: tensors that changed and are not in the adapter (norms, biases, other shapes than those of layers),
            with ‖change‖_F.
        skipped: weights that changed and that no pattern asked for, with ‖change‖_F.
        unchanged: how many tensors are the same in both.
    """

    adapter: Adapter
    sites: Mapping[str, ExtractedSite]
    others: Mapping[str, float] = field(default_factory=dict[str, float])
    skipped: Mapping[str, float] = field(default_factory=dict[str, float])
    unchanged: int = 0

    @property
    def relative_error(self) -> float:
        """Over the sites of the adapter: √(Σ error²) / √(Σ norm²)."""
        norm = math.hypot(*(site.norm for site in self.sites.values()))
        return math.hypot(*(site.error for site in self.sites.values())) / norm if norm > 0 else 0.0


def extract(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    cut: Cut,
    *,
    sites: tuple[str, ...] = (),
    is_dora: bool = False,
    dtype: DTypeLike = np.float32,
    base_name: str | None = None,
    seed: int = 0,
    on_tensor: Callable[[int, int], Any] | None = None,
) -> Extracted:
    """The adapter that makes of ``base``, as nearly as its rank allows, ``tuned``.

    Args:
        base, tuned: folders of safetensors weights (shards, pipelines), or files.
        cut: how much of each difference is kept.
        sites: shell patterns; only weights whose site one of them fits are taken, all by default.
        is_dora: as a magnitude and a direction.
        dtype: of the factors.
        base_name: what the adapter calls its base; by default what ``base_name_of`` finds.
        seed: of the range finder.
        on_tensor: told after each tensor how many are done, and of how many.

    Raises:
        AdapterError: where the two have not the same tensors in the same shapes, a weight is quantised or not finite,
            or nothing that was asked for differs.
        LorascopeError: where no limit is given, or a pattern fits no weight.
    """
    if cut.is_open:
        raise LorascopeError("nothing is asked for", expected="a rank, energy, ratio or error")
    kind = floating_dtype(dtype)
    one, two = Checkpoint.open(base), Checkpoint.open(tuned)
    _check_alike(one, two)
    found: dict[str, Update] = {}
    errors: dict[str, ExtractedSite] = {}
    others: dict[str, float] = {}
    skipped: dict[str, float] = {}
    unchanged, unused = 0, set(sites)
    for number, (name, before) in enumerate(one.tensors.items(), 1):
        after, site = two.tensors[name], name.removesuffix(".weight")
        fitting = {pattern for pattern in sites if fnmatchcase(site, pattern)}
        unused -= fitting
        if _is_same(before, after):
            unchanged += 1
        elif not _is_layer(name, before):
            others[name] = _change(before, after, name)
        elif sites and not fitting:
            skipped[name] = _change(before, after, name)
        else:
            place = _Place.of(one, site, before.shape)
            generator = np.random.default_rng([seed, *site.encode()])
            try:
                weights = _Weights.of({one.path: before, two.path: after}, place)
                found[site], errors[site] = (_dora if is_dora else _plain)(weights, place, cut, kind, generator)
            except AdapterError as error:
                error.file, error.key = error.file or str(two.path), error.key or name
                raise
        if on_tensor is not None:
            on_tensor(number, len(one.tensors))
    if unused:
        raise LorascopeError(
            "no weight fits the pattern", key=min(unused), expected=f"sites such as {_example(one)}", hint="quote it"
        )
    if not found:
        raise AdapterError(
            "no weight that was asked for differs between the two",
            file=two.path,
            expected=f"a checkpoint that was tuned from {one.path}",
            found=f"{unchanged} tensors that are the same, {len(others) + len(skipped)} others that changed",
        )
    provenance = Provenance(base_model=base_name or base_name_of(one.path))
    return Extracted(Adapter(found, provenance), errors, others, skipped, unchanged)


class _Place(NamedTuple):
    """What a weight is: its layer, the kernel of a convolution, and whether it is stored as [in, out]."""

    layer: Layer
    kernel: tuple[int, ...]
    is_transposed: bool

    @classmethod
    def of(cls, base: Checkpoint, site: str, shape: tuple[int, ...]) -> _Place:
        if len(shape) > 2:
            return cls(_CONVOLUTIONS[len(shape)], shape[1:], False)
        if is_embedding(site):
            return cls("embedding", (), True)  # a row for each token: [in, out]
        return cls("linear", (), base.spot(site).is_in_out or False)

    def update(self, B: NDArray[Any], A: NDArray[Any], dtype: np.dtype[Any]) -> LowRank:
        """B A at this place, in the dtype of the result."""
        return LowRank(
            cast_to(B, dtype),
            cast_to(A, dtype),
            layer=self.layer,
            kernel=self.kernel,
            is_transposed=self.is_transposed,
        )


@dataclass(frozen=True, eq=False)
class _Weights:
    """W and W' as matrices [out, in] in the dtypes of their files; rows are widened when they are asked for."""

    before: NDArray[Any]
    after: NDArray[Any]

    @classmethod
    def of(cls, stored: Mapping[Path, NDArray[Any]], place: _Place) -> _Weights:
        both = [as_matrix(weight, is_transposed=place.is_transposed) for weight in stored.values()]
        for path, weight in zip(stored, both, strict=True):
            for block in row_blocks(weight.shape):
                if not bool(np.isfinite(weight[block].astype(np.float64)).all()):
                    raise AdapterError("a weight is not finite", file=path, found="NaN or infinity")
        return cls(*both)

    @property
    def shape(self) -> tuple[int, int]:
        return self.before.shape[0], self.before.shape[1]

    def old(self, rows: slice) -> NDArray[np.float64]:
        return self.before[rows].astype(np.float64)

    def new(self, rows: slice) -> NDArray[np.float64]:
        return self.after[rows].astype(np.float64)

    def norm(self) -> float:
        return math.hypot(*(float(np.linalg.norm(self.new(rows) - self.old(rows))) for rows in row_blocks(self.shape)))


def _plain(
    weights: _Weights, place: _Place, cut: Cut, dtype: np.dtype[Any], generator: np.random.Generator
) -> tuple[Update, ExtractedSite]:
    done = _best(Rows(weights.shape, lambda rows: weights.new(rows) - weights.old(rows)), cut, generator)
    update = place.update(done.B, done.A, dtype)
    B, A = update.B.astype(np.float64), update.A.astype(np.float64)
    errors = [
        float(np.linalg.norm(weights.new(rows) - weights.old(rows) - B[rows] @ A)) for rows in row_blocks(weights.shape)
    ]
    return update, ExtractedSite(update.rank, weights.norm(), math.hypot(*errors))


def _dora(
    weights: _Weights, place: _Place, cut: Cut, dtype: np.dtype[Any], generator: np.random.Generator
) -> tuple[Update, ExtractedSite]:
    """A magnitude and a direction, W' ≈ m ∘ (W + V) / ‖W + V‖ with the rows of W."""
    if place.layer == "embedding":
        raise AdapterError("a DoRA of an embedding has no place in files", hint="leave it out with --sites")
    blocks = list(row_blocks(weights.shape))
    lengths = np.concatenate([np.linalg.norm(weights.new(rows), axis=1) for rows in blocks])
    safe = np.where(lengths > 0, lengths, 1.0)
    old = np.concatenate([np.linalg.norm(weights.old(rows), axis=1) for rows in blocks])
    stretch = np.where(old > 0, old / safe, 1.0)  # a row of zeros has no length to keep, and would stay at zero
    update = place.update(np.zeros((weights.shape[0], 1)), np.zeros((1, weights.shape[1])), dtype)
    for _ in range(_TURNS):
        ratio = stretch

        def rows_of(rows: slice, ratio: NDArray[Any] = ratio) -> NDArray[np.float64]:
            return ratio[rows, None] * weights.new(rows) - weights.old(rows)

        done = _best(Rows(weights.shape, rows_of), cut, generator)
        update = place.update(done.B, done.A, dtype)
        B, A = update.B.astype(np.float64), update.A.astype(np.float64)
        along = [np.sum(weights.new(rows) * (weights.old(rows) + B[rows] @ A), axis=1) for rows in blocks]
        stretch = np.concatenate(along) / safe**2
    B, A = update.B.astype(np.float64), update.A.astype(np.float64)
    magnitudes: list[NDArray[np.float64]] = []
    errors: list[float] = []
    for rows in blocks:
        direction = weights.old(rows) + B[rows] @ A
        size = np.linalg.norm(direction, axis=1, keepdims=True)
        direction = np.divide(direction, size, out=np.zeros_like(direction), where=size > 0)
        own = cast_to(np.sum(weights.new(rows) * direction, axis=1), dtype)
        magnitudes.append(own)
        errors.append(float(np.linalg.norm(weights.new(rows) - own.astype(np.float64)[:, None] * direction)))
    magnitude = np.concatenate(magnitudes)
    result = decorated(update, magnitude, "magnitude", "")
    return result, ExtractedSite(update.rank, weights.norm(), math.hypot(*errors))


def _best(matrix: Rows, cut: Cut, generator: np.random.Generator) -> Truncated:
    """The best part of a matrix that the cut allows: in full where that is cheap, else by a range finder."""
    out, in_ = matrix.shape
    if min(out, in_) ** 2 * max(out, in_) <= MAX_WORK:
        whole = np.concatenate([matrix.rows(rows) for rows in row_blocks(matrix.shape)])
        U, S, Vh = np.linalg.svd(whole, full_matrices=False)
        smallest = float(np.finfo(np.float64).eps) * max(out, in_) * float(S[0])
        return truncated(SVD(U, S, Vh), cut.of(np.where(smallest < S, S, 0.0)))
    width = min(out, in_, cut.rank or _FIRST_WIDTH)
    while True:
        found = low_rank(matrix, Cut(rank=width), width, generator)
        S = np.linalg.norm(found.B, axis=0) * np.linalg.norm(found.A, axis=1)
        tails = np.hypot(found.error, np.sqrt(np.append(np.cumsum(S[::-1] ** 2)[::-1], 0.0)))  # what k leaves, k = 0 …
        kept = _kept(S, tails, found.norm, cut)
        if kept is not None or width == min(out, in_) or cut.rank is not None:
            count = max(1, width if kept is None else kept)
            return Truncated(found.B[:, :count], found.A[:count], found.norm, float(tails[min(count, len(S))]))
        width = min(out, in_, 2 * width)


def _kept(S: NDArray[Any], tails: NDArray[Any], norm: float, cut: Cut) -> int | None:
    """The rank that the cut asks for, None where it is beyond what was looked at."""
    limits = [] if cut.rank is None else [cut.rank]
    if cut.ratio is not None and len(S):
        found = int(np.count_nonzero(S >= cut.ratio * S[0]))
        limits += [found] if found < len(S) else []
    for share in (cut.error, None if cut.energy is None else math.sqrt(1 - cut.energy)):
        if share is not None and bool((tails <= share * norm).any()):
            limits.append(int(np.argmax(tails <= share * norm)))
    return min(limits, default=None)


def _check_alike(one: Checkpoint, two: Checkpoint) -> None:
    missing = [name for name in one.tensors if name not in two.tensors]
    added = [name for name in two.tensors if name not in one.tensors]
    if missing or added:
        raise AdapterError(
            "the two checkpoints have not the same tensors",
            file=two.path,
            key=(missing or added)[0],
            expected=f"the {len(one.tensors)} tensors of {one.path}",
            found=f"{len(missing)} are missing, {len(added)} are new",
            hint="is it the base that the other was tuned from, saved by the same library?",
        )
    for name, tensor in one.tensors.items():
        if two.tensors[name].shape != tensor.shape:
            raise AdapterError(
                "a tensor has another shape in the tuned checkpoint",
                file=two.path,
                key=name,
                expected=list(tensor.shape),
                found=list(two.tensors[name].shape),
                hint="a vocabulary that was extended is no low-rank change: save it whole",
            )
    for name, tensor in one.tensors.items():
        site = name.removesuffix(".weight")
        is_quantised = _is_layer(name, tensor) and (one.is_quantised(site) or two.is_quantised(site))
        if is_quantised and not _is_same(tensor, two.tensors[name]):
            raise AdapterError(
                "a weight is quantised, so that its difference is not the change of the weight",
                file=one.path,
                key=name,
                found=tensor.dtype.name,
                hint="give both checkpoints unquantised",
            )


def _is_layer(name: str, tensor: NDArray[Any]) -> bool:
    """Whether a tensor is the weight of a layer that adapters have: a matrix, or a convolution's."""
    return name.endswith(".weight") and 2 <= tensor.ndim <= 5 and min(tensor.shape) > 0


def _is_same(one: NDArray[Any], two: NDArray[Any]) -> bool:
    """Whether two tensors of one shape are the same bit for bit."""
    if one.dtype != two.dtype:
        return False
    blocks = row_blocks(one.shape) if one.ndim else [slice(None)]
    first, second = (one, two) if one.ndim else (one.reshape(1), two.reshape(1))
    return all(np.array_equal(_bytes(first[rows]), _bytes(second[rows])) for rows in blocks)


def _bytes(tensor: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)


def _change(before: NDArray[Any], after: NDArray[Any], name: str) -> float:
    """‖change‖_F of a tensor that is no site; NaN where its numbers are no plain ones."""
    if before.dtype.kind == "c" or not before.size:
        return math.nan
    return float(np.linalg.norm((after.astype(np.float64) - before.astype(np.float64)).ravel()))


def _example(base: Checkpoint) -> str:
    return next((name.removesuffix(".weight") for name, one in base.tensors.items() if _is_layer(name, one)), "none")
