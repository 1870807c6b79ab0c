"""LoRA-WiSE: how many images a LoRA of Stable Diffusion was trained on. Salama et al., *DSiRe*, arXiv 2406.19395.

    <range>/<rank>/train-<k>-of-<n>.parquet        main branch: low/8, medium/32_2, high/32
    <range>_<rank>/…/<k>.parquet                   the branch that the hub has converted: low_8, medium_32_2

Each row is an adapter: ``label`` (the number of images), ``name`` (of the set of images), and a column for each
tensor, ``unet.<site>.lora.down.weight`` and ``….up.weight``. By the data set card (the hub's MoSalama98/LoRA-WiSE) a
tensor is a flat list of numbers; the sizes that the card states agree (300 rows of rank 32: 6,377,472 numbers of 8
bytes a row). The rank is that of the folder; a list is taken row by row, as ``numpy.ravel`` makes it. The authors' code
(MoSalama98/DSiRe) takes the columns for matrices: a list of equal lists is read too.

Each row is written as a diffusers file of its own (scale 1: there is no alpha), in float32 where that is exact.

Groups: the set of images, over all ranks: the authors draw 15 of the 50 sets to train on and test on the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import ZooError
from lorascope.zoo.layout import Entry, Reading
from lorascope.zoo.store import import_parquet, import_pyarrow
from lorascope.zoo.tree import Tree, joined

_RANGES = ("low", "medium", "high")
_RANK = re.compile(r"(?P<rank>\d{1,4})(_\d+)?")
_SUBSET = re.compile(r"(?P<range>low|medium|high)_(?P<rank>\d{1,4})(_\d+)?")
_TENSOR = re.compile(r"(?P<site>.+)\.lora\.(?P<half>down|up)\.weight", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")

MAXIMUM_VALUES = 1 << 28
"""Numbers of one adapter; those of rank 32 have 6.4 million."""


class LoraWise:
    """Adapters of known numbers of images."""

    name = "lora-wise"
    title = "LoRA-WiSE (sizes of training sets)"
    reference = "Salama et al. 2024, arXiv 2406.19395"
    files = "<low|medium|high>/<rank>/*.parquet or <range>_<rank>/*.parquet"
    documented = "the data set card of MoSalama98/LoRA-WiSE; the order of the numbers in a flat list is assumed"
    unknown = "the base model, the hyperparameters but the rank, and whether flat lists are in rows or in columns"
    is_experimental = True

    def recognise(self, tree: Tree) -> list[str]:
        return ["parquet"] if _subsets(tree) else []

    def read(self, tree: Tree, variant: str, *, published_split: bool) -> Reading:
        if published_split:
            raise ZooError("the layout has no published split: the code draws ten at random", file=tree.root)
        subsets = _subsets(tree)
        files = [(subset, path) for subset in subsets for path in _files(tree, subset)]
        count = sum(_rows(tree.at(path)) for _, path in files)
        return Reading(
            variant=variant,
            count=count,
            entries=_entries(tree, files),
            hyperparameters={"subset": "string", "rank": "int"},
            labels={"dataset_size": "int", "images": "string"},
            needs_out=True,
        )


def _subsets(tree: Tree) -> list[str]:
    """The folders whose files are the rows of one subset."""
    nested = [
        joined(name, inner)
        for name in tree.folders()
        if name in _RANGES
        for inner in tree.folders(name)
        if _RANK.fullmatch(inner)
    ]
    flat = [name for name in tree.folders() if _SUBSET.fullmatch(name)]
    return [subset for subset in (*nested, *flat) if _files(tree, subset)]


def _files(tree: Tree, subset: str) -> list[str]:
    return [
        joined(inside, name)
        for inside in (subset, *(joined(subset, inner) for inner in tree.folders(subset)))
        for name in tree.files(inside)
        if name.endswith(".parquet")
    ]


def _rows(file: Path) -> int:
    parquet, arrow = import_parquet(), import_pyarrow()
    try:
        with parquet.ParquetFile(file) as opened:
            if lacking := [name for name in ("label", "name") if name not in opened.schema_arrow.names]:
                raise ZooError("columns are missing", file=file, expected=", ".join(lacking))
            return opened.metadata.num_rows
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise ZooError("is not a Parquet file", file=file, found=str(error).splitlines()[0][:160]) from error


def _entries(tree: Tree, files: Sequence[tuple[str, str]]) -> Iterator[Entry]:
    """The rows, one at a time: in memory are one adapter and the pages of each column that hold it, not the file."""
    parquet, arrow = import_parquet(), import_pyarrow()
    for subset, path in files:
        name = subset.replace("/", "_")
        match = _SUBSET.fullmatch(name)
        assert match is not None  # which is what a subset is
        try:
            with parquet.ParquetFile(tree.at(path), buffer_size=1 << 16, pre_buffer=False) as opened:
                for number, batch in enumerate(opened.iter_batches(batch_size=1)):
                    yield _entry(name, match["range"], int(match["rank"]), f"{path} row {number}", batch)
        except (arrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0][:160]
            yield Entry(f"{path} and what follows", "", damage=f"the file is damaged: {reason}")


def _entry(subset: str, range_: str, rank: int, where: str, batch: Any) -> Entry:
    size, images = batch.column("label")[0].as_py(), str(batch.column("name")[0].as_py())
    if not _NAME.fullmatch(images):
        return Entry(where, "", damage=f"the name of the images is not plain: {ascii(images)[:60]}")
    is_labelled = isinstance(size, int) and not isinstance(size, bool) and size > 0
    values = {
        "subset": subset,
        "rank": rank,
        "images": images,
        "dataset_size": size if is_labelled else None,
    }
    name = f"{subset}/{images}/{size}" if is_labelled else f"{subset}/{images}/unknown"
    group = f"{range_} {images}"
    try:
        return Entry(name, group, values, is_labelled, tensors=_tensors(batch, rank))
    except ZooError as error:
        return Entry(name, group, values, is_labelled, damage=f"{where}: {error}")


def _tensors(batch: Any, rank: int) -> Mapping[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    total = 0
    for key in batch.schema.names:
        match = _TENSOR.fullmatch(key)
        if match is None:
            continue
        tensor = _matrix(key, batch.column(key)[0], rank, match["half"])
        total += tensor.size
        if total > MAXIMUM_VALUES:
            raise ZooError("the adapter is too large", expected=f"at most {MAXIMUM_VALUES} numbers")
        narrow = tensor.astype(np.float32)
        tensors[key] = narrow if np.array_equal(narrow, tensor, equal_nan=True) else tensor
    if not tensors:
        raise ZooError("the row has no tensors", expected="columns <site>.lora.down.weight and <site>.lora.up.weight")
    return tensors


def _matrix(key: str, cell: Any, rank: int, half: str) -> NDArray[Any]:
    """A factor of the shape [rank, in] (down) or [out, rank] (up)."""
    arrow = import_pyarrow()
    if not cell.is_valid or not arrow.types.is_nested(cell.type):
        raise ZooError("a tensor is missing", key=key)
    values = cell.values
    if arrow.types.is_list(values.type) or arrow.types.is_large_list(values.type):
        lengths = {len(row) for row in values}
        if len(lengths) != 1 or values.null_count:
            raise ZooError("the rows of a tensor differ in length", key=key)
        flat, shape = values.flatten(), (len(values), lengths.pop())
        if shape[0 if half == "down" else 1] != rank:
            raise ZooError("a tensor has another rank than its folder says", key=key, expected=rank, found=shape)
    else:
        flat = values
        if not len(flat) or len(flat) % rank:
            raise ZooError(
                "the numbers of a tensor do not make rows of the rank", key=key, expected=f"a multiple of {rank}"
            )
        shape = (rank, len(flat) // rank) if half == "down" else (len(flat) // rank, rank)
    if flat.null_count:
        raise ZooError("a tensor lacks numbers", key=key)
    return flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(shape)


LAYOUT = LoraWise()
