"""``bake``: adapters folded into a checkpoint, W + Σ ΔW, tensor by tensor.

The sum is formed in float64 and rounded once to the dtype of the base weight. One tensor is widened at a time: the
checkpoint streams from its mapped files to new ones of the same names, and everything else in it is copied as it is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorascope import formats
from lorascope.adapter import Adapter, Update
from lorascope.adapter.layout import Layout, Spot, check_answer, settled
from lorascope.adapter.rows import row_blocks
from lorascope.adapter.saved import placed, refusal
from lorascope.adapter.site import path_and_part
from lorascope.adapter.widening import as_matrix
from lorascope.conversion.apart import check_apart, check_apart_from
from lorascope.conversion.carried import carry_over
from lorascope.conversion.tied_heads import tied_heads
from lorascope.errors import AdapterError, OutputError
from lorascope.formats.checkpoint import Checkpoint, is_addable
from lorascope.formats.output_file import replaced_file, written_folder
from lorascope.formats.output_name import check_file, check_folder
from lorascope.formats.stream_file import Slot, write_streamed


@dataclass(frozen=True)
class BakeReport:
    """What was folded in.

    Args:
        output: the folder or file written.
        sites: how many sites of all adapters were folded in.
        tensors: how many tensors of the checkpoint changed.
        replaced: whole tensors of the adapters (saved heads, norms) that took the place of base tensors.
        rounding: ‖W' − (W + ΣΔW)‖_F / ‖ΣΔW‖_F over all changed weights: what the base's dtype could not hold.
        notes: what a person should know of the output: a head that moved with its embedding, files left out.
    """

    output: str
    sites: int
    tensors: int
    replaced: tuple[str, ...]
    rounding: float
    notes: tuple[str, ...] = ()


def bake(
    base: str | os.PathLike[str],
    adapters: Sequence[str | os.PathLike[str] | Adapter],
    output: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    is_loss_allowed: bool = False,
    layout: Layout | None = None,
    is_overwritten: bool = False,
    on_tensor: Callable[[int, int], None] | None = None,
) -> BakeReport:
    """Fold adapters into the checkpoint ``base`` and write it to ``output``.

    Args:
        base: a folder of safetensors weights (shards, a diffusers pipeline), or one file.
        adapters: paths, hub ids or adapters; those that need the base weight (DoRA, OFT …) are applied to what the
            adapters before them left.
        output: a folder where the base is one, else a file.
        weights: a factor for each adapter, 1 if left out; only additive updates take another.
        is_loss_allowed: leave out tensors of the adapters that have no place in the base, and take updates that are in
            doubt as they were read, instead of refusing.
        layout: how the base stores square weights of which neither it nor the adapters tell it: "out-in" as
            ``torch.nn.Linear``, "in-out" as GPT-2's Conv1D and the experts of GPT-OSS. An answer that no site needs
            and that contradicts what is known is refused.
        is_overwritten: replace a file that is there, or a folder with no other files than are written, but never the
            base or an adapter.
        on_tensor: told after each tensor how many are written, and of how many.

    Raises:
        AdapterError: where a site or a saved tensor is not in the base, does not fit it, or fits it either way round
            and nothing tells which; where the base is quantised, or a tied head is changed.
        OutputError: where the output cannot be written, or is there already; nothing is left behind.
    """
    source = Path(base)
    checkpoint = Checkpoint.open(source)
    _check_output(source, Path(output), is_overwritten=is_overwritten)
    loaded = [one if isinstance(one, Adapter) else formats.read(one) for one in adapters]
    if is_overwritten:
        check_apart_from([source, *checkpoint.files], Path(output))  # its files may be links to elsewhere
        for one, adapter in zip(adapters, loaded, strict=True):
            check_apart(one, adapter, Path(output))
    factors = list(weights) if weights is not None else [1.0] * len(loaded)
    if len(factors) != len(loaded):
        raise AdapterError("one weight for each adapter", expected=len(loaded), found=len(factors))
    changes, replaced = _changes(checkpoint, loaded, factors, is_loss_allowed=is_loss_allowed, layout=layout)
    tied = tied_heads(checkpoint, changes, replaced)
    saved = tuple(replaced)
    for head, embedding in tied.followers.items():
        changes |= {head: changes[embedding]} if embedding in changes else {}
        whole = replaced.get(embedding, checkpoint.tensors[embedding])
        replaced[head] = _cast(whole, checkpoint.tensors[head].dtype, head)
    tally = _Tally()
    with _opened(source, Path(output), checkpoint, is_overwritten=is_overwritten) as target:
        done, metadata = 0, checkpoint.metadata
        for file, path in target.files.items():
            names = [checkpoint.files[file] + name for name in checkpoint.names[file]]
            slots = [
                Slot(own, checkpoint.tensors[name].dtype, checkpoint.tensors[name].shape)
                for own, name in zip(checkpoint.names[file], names, strict=True)
            ]
            baked = (_baked(name, checkpoint.tensors[name], changes, replaced, tally) for name in names)
            write_streamed(path, slots, _counted(baked, done, len(checkpoint.tensors), on_tensor), metadata[file])
            done += len(names)
    return BakeReport(
        output=os.fspath(output),
        sites=sum(len(adapter) for adapter in loaded),
        tensors=len({*changes, *replaced}),
        replaced=saved,
        rounding=tally.error / tally.change if tally.change else 0.0,
        notes=(*tied.notes, *target.notes),
    )


def _counted(
    tensors: Iterable[Iterator[NDArray[Any]]], done: int, total: int, on_tensor: Callable[[int, int], None] | None
) -> Iterator[NDArray[Any]]:
    for count, blocks in enumerate(tensors, start=done + 1):
        yield from blocks
        if on_tensor is not None:
            on_tensor(count, total)


class _Change(NamedTuple):
    """One adapter's change of a weight (or bias), or of a part of it."""

    site: str
    update: Update
    factor: float
    is_bias: bool


@dataclass
class _Tally:
    """Frobenius norms over all changed tensors: of ΣΔW, and of what rounding to the base's dtype took away."""

    error: float = 0.0
    change: float = 0.0

    def add(self, error: float, change: float) -> None:
        self.error, self.change = math.hypot(self.error, error), math.hypot(self.change, change)


def _changes(
    checkpoint: Checkpoint,
    adapters: Sequence[Adapter],
    factors: Sequence[float],
    *,
    is_loss_allowed: bool,
    layout: Layout | None,
) -> tuple[dict[str, list[_Change]], dict[str, NDArray[Any]]]:
    """Tensor name → what is added to it, and tensor name → what takes its place; everything is checked first."""
    changes: dict[str, list[_Change]] = {}
    replaced: dict[str, NDArray[Any]] = {}
    places = [_spots(checkpoint, adapter, is_loss_allowed=is_loss_allowed) for adapter in adapters]
    check_answer(layout, zip(adapters, places, strict=True))
    for adapter, spots, factor in zip(adapters, places, factors, strict=True):
        updates = settled(adapter, spots, given=layout, file=adapter.provenance.path)
        for site, update in updates.items():
            name = checkpoint.name_of(site)
            if update.needs == "base weight" and factor != 1.0:
                raise AdapterError(
                    "an update that is relative to the base weight has no multiples", key=site, found=f"weight {factor}"
                )
            changes.setdefault(str(name), []).append(_Change(site, update, factor, is_bias=False))
            bias = checkpoint.bias_of(site)
            part = path_and_part(site)[1]
            if part is not None:
                beside = None if bias is None or part.end is None else part.of(checkpoint.tensors[bias], site)
                if update.bias is not None or update.delta_bias(np.float32, base=beside) is not None:
                    raise AdapterError("a part of a weight has no bias of its own", key=site)
            elif bias is not None:
                stored = checkpoint.tensors[bias]
                if update.bias is not None or update.delta_bias(np.float32, base=stored) is not None:
                    changes.setdefault(bias, []).append(_Change(site, update, factor, is_bias=True))
            elif update.bias is not None:
                raise AdapterError("the adapter changes a bias that the base has not", key=site)
        for name, tensor in _replacements(checkpoint, adapter, is_loss_allowed=is_loss_allowed).items():
            is_other = name in replaced and not np.array_equal(replaced[name], tensor)
            if is_other or factor != 1.0:
                raise AdapterError(
                    "whole tensors that adapters saved cannot be added up or weighed",
                    file=adapter.provenance.path,
                    key=name,
                    found=f"weight {factor:g}" if factor != 1.0 else "another adapter saved it too",
                )
            replaced[name] = tensor
    return changes, replaced


def _spots(checkpoint: Checkpoint, adapter: Adapter, *, is_loss_allowed: bool) -> dict[str, Spot]:
    """What is known of the base at each site of an adapter that can be added to it."""
    _check_doubts(adapter, is_loss_allowed=is_loss_allowed)
    checkpoint.check_places(adapter)
    for site in adapter:
        _check_addable(checkpoint, adapter, site)
    return {site: checkpoint.spot(site) for site in adapter}


def _check_doubts(adapter: Adapter, *, is_loss_allowed: bool) -> None:
    doubts = [note for note in adapter.notes if note.is_doubt]
    if doubts and not is_loss_allowed:
        raise AdapterError(
            "the update may be another one than was trained, and baking would make that permanent",
            file=adapter.provenance.path,
            key=doubts[0].site,
            found="; ".join(note.text for note in doubts[:3]),
            hint="settle it (a scale can be given with --scale), or accept it with --allow-loss",
        )


def _check_addable(checkpoint: Checkpoint, adapter: Adapter, site: str) -> None:
    weight = checkpoint.weight(site)
    if checkpoint.is_quantised(site):
        raise AdapterError(
            "the base weight is quantised, so nothing can be added to it exactly",
            file=adapter.provenance.path,
            key=site,
            found=weight.dtype.name,
            hint="bake into the unquantised base",
        )


def _replacements(checkpoint: Checkpoint, adapter: Adapter, *, is_loss_allowed: bool) -> dict[str, NDArray[Any]]:
    weights = {site: str(checkpoint.name_of(site)) for site in adapter}
    try:
        placement = placed(adapter.leftovers, weights, checkpoint.tensors, is_addable)
        if placement.unplaced and not is_loss_allowed:
            one = placement.unplaced[0]
            error = refusal(one, adapter.leftovers, checkpoint.tensors, "base")
            error.hint = checkpoint.hint_of_head(one.path) or "leave it out with --allow-loss"
            raise error
    except AdapterError as error:
        error.file = error.file or (adapter.provenance.path and str(adapter.provenance.path))
        raise
    return {
        name: _cast(adapter.leftovers[key], checkpoint.tensors[name].dtype, name)
        for name, key in placement.found.items()
    }


def _cast(tensor: NDArray[Any], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        result = tensor.astype(dtype)
    if not bool(np.isfinite(result.astype(np.float32)).all()):
        raise AdapterError("a saved tensor is beyond the range of the base's dtype", key=name, found=dtype.name)
    return result


def _baked(
    name: str,
    stored: NDArray[Any],
    changes: Mapping[str, list[_Change]],
    replaced: Mapping[str, NDArray[Any]],
    tally: _Tally,
) -> Iterator[NDArray[Any]]:
    """The tensor to write, in blocks of rows where it changes."""
    start = replaced.get(name, stored)
    if name not in changes or not start.size:
        yield start
        return
    total: NDArray[Any] = start.astype(np.float64)
    for change in changes[name]:
        _add(total, change)
    for block in row_blocks(total.shape):
        with np.errstate(over="ignore"):
            result = total[block].astype(stored.dtype)
        rounded = result.astype(np.float64)
        if not bool(np.isfinite(rounded).all()):
            raise AdapterError("the sum is beyond the range of the base's dtype", key=name, found=stored.dtype.name)
        moved = total[block] - start[block].astype(np.float64)
        tally.add(float(np.linalg.norm((rounded - total[block]).ravel())), float(np.linalg.norm(moved.ravel())))
        yield result


def _add(total: NDArray[Any], change: _Change) -> None:
    """Add one change to the float64 weight, or bias, in place."""
    _, part = path_and_part(change.site)
    target = total if part is None else part.of(total, change.site)
    update = change.update
    if change.is_bias:
        delta = update.delta_bias(np.float64, base=target)
        if delta is not None:
            _check_fit(change, delta.shape, target.shape)
            target += change.factor * delta
        return
    update = update.resolved(target.shape) if update.needs in ("base shape", "base weight") else update
    matrix = as_matrix(target, is_transposed=update.is_transposed)
    _check_fit(change, update.shape, matrix.shape)
    update.add_to(matrix, change.factor)  # in place: ΔW is never there in full


def _check_fit(change: _Change, expected: tuple[int, ...], found: tuple[int, ...]) -> None:
    if expected != found:
        raise AdapterError(
            "the update does not fit the weight of the base",
            key=change.site,
            expected=list(expected),
            found=list(found),
        )


class _Target(NamedTuple):
    """Weights file of the base → where its baked version is written, and what was left out beside them."""

    files: Mapping[Path, Path]
    notes: Sequence[str]


def _check_output(source: Path, output: Path, *, is_overwritten: bool) -> None:
    """Refuse what is there, and the name of a file for a folder or of none for a file, before any work."""
    if not source.is_file():
        check_folder(output, None, is_overwritten=is_overwritten, what="a base that is a folder")
        return
    if output.suffix.lower() != ".safetensors":
        raise OutputError(
            "a base that is one file is written as a file that ends in .safetensors",
            file=output,
            hint=f"name it {output.name}.safetensors",
        )
    check_file(output, is_overwritten=is_overwritten)


@contextmanager
def _opened(source: Path, output: Path, checkpoint: Checkpoint, *, is_overwritten: bool) -> Generator[_Target]:
    """Where to write, with the other files of the base in place; all of it appears at once or not at all."""
    if source.is_file():
        with replaced_file(output) as path:
            yield _Target({source: path}, ())
        return
    is_pipeline = any(checkpoint.files.values())
    with written_folder(output, is_replaced=is_overwritten) as folder:
        notes = carry_over(source, folder, checkpoint.names, is_pipeline=is_pipeline)
        files = {file: folder / file.relative_to(source) for file in checkpoint.files}
        here = {path.relative_to(folder).as_posix() for path in (*folder.rglob("*"), *files.values())}
        check_folder(output, here, is_overwritten=is_overwritten)  # what is carried over is known now
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        yield _Target(files, notes)
