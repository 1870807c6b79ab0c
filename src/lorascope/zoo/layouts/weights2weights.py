"""weights2weights: rank-1 identity LoRAs of Stable Diffusion 1.5. Dravid et al., arXiv 2406.09413.

    rows      weights_datasets/identities/all_weights.pt      [models, numbers], a row for each adapter
              weights_datasets/weight_dimensions.pt           key → (count, shape) of the tensors in a row, in order
              weights_datasets/adapter_config.json            of all of them
              identity_df.csv                                 the attributes, a line for each row
    folders   models/<number>/unet/adapter_model.safetensors, adapter_config.json
              identity_df.csv                                 with a column ``file``, the number

Layout: the hub's snap-research/weights2weights (its README and listing) and snap-research/weights2weights, utils.py
(``unflatten``) and other/datasets.ipynb, other/creating_weights_dataset.ipynb.

The attributes are published as ``identity_df.pt``, a pickled pandas table, which only a pickle that runs code can load:
it is not read. Where you trust it, write it as a table beside it once:

    python -c "import torch; torch.load('identity_df.pt', weights_only=False).to_csv('identity_df.csv')"

Groups: the ``file`` of an adapter, else its row. Which of them are of one person of CelebA is not told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import ZooError
from lorascope.formats.source import CONFIG_NAME
from lorascope.zoo.label_files import Line, Table, read_object, read_plain_pickle
from lorascope.zoo.layout import Entry, Reading
from lorascope.zoo.schema import Type
from lorascope.zoo.tree import Tree, joined

_WEIGHTS, _DIMENSIONS, _TABLE = "all_weights.pt", "weight_dimensions.pt", "identity_df.csv"
_COMMAND = """python -c "import torch; torch.load('identity_df.pt', weights_only=False).to_csv('identity_df.csv')\""""
_NUMBER = re.compile(r"(?P<number>\d{1,9})")
_KEY = re.compile(
    r"(?:lora_unet_)?(?:base_model\.model\.)?(?P<site>.+?)[._]lora_(?P<half>A|B|down|up)(?:\.\w+)?\.weight", re.DOTALL
)
_WEIGHTS_BYTES = 1 << 40  # mapped, and looked at row by row
BASE = "stablediffusionapi/realistic-vision-v51"


class Weights2Weights:
    """Identity LoRAs, as rows of one tensor or as folders."""

    name = "weights2weights"
    title = "weights2weights (identities)"
    reference = "Dravid et al. 2024, arXiv 2406.09413"
    files = "all_weights.pt with weight_dimensions.pt and adapter_config.json, or models/<number>/unet"
    documented = "the hub's README and listing, and the authors' code"
    unknown = (
        "which identities are of one person of CelebA, so a person can be in two splits; the hyperparameters; the "
        "dogs, whose labels are a pickle that is not read"
    )
    is_experimental = True

    def recognise(self, tree: Tree) -> list[str]:
        found = []
        if _find(tree, _DIMENSIONS) and _find(tree, _WEIGHTS):
            found.append("rows")
        if _models(tree):
            found.append("folders")
        return found

    def read(self, tree: Tree, variant: str, *, published_split: bool) -> Reading:
        if published_split:
            raise ZooError("the layout has no published split", file=tree.root)
        table = _find(tree, _TABLE)
        if table is None:
            raise ZooError(
                "the table of attributes is missing (identity_df.pt is a pickle that is not read)",
                file=tree.root,
                key=_TABLE,
                hint=f"loading identity_df.pt can run any code; only where you trust it, run beside it: {_COMMAND}",
            )
        return _rows(tree, Table(table)) if variant == "rows" else _folders(tree, Table(table, ("file",)))


def _find(tree: Tree, name: str) -> Path | None:
    """The file in the folder, in one of its folders, or in one of theirs, as ``weights_datasets/identities`` is."""
    for inside in ("", *tree.folders(), *(joined(one, two) for one in tree.folders() for two in tree.folders(one))):
        if name in tree.files(inside):
            return tree.at(joined(inside, name))
    return None


def _models(tree: Tree) -> list[tuple[str, int]]:
    return [
        (path, int(match["number"]))
        for path, match in tree.matching(_NUMBER)
        if "unet" in tree.folders(path) and "adapter_model.safetensors" in tree.files(joined(path, "unet"))
    ]


def _attributes(table: Table) -> list[str]:
    """The columns that are attributes: not the index, which has no name, and not ``file``."""
    return [name for name in table.names if name and name != "file" and not name.startswith("Unnamed")]


def _values(line: Line, names: Sequence[str]) -> dict[str, Any]:
    return {name: line.is_set(name) for name in names}


def _folders(tree: Tree, table: Table) -> Reading:
    names = _attributes(table)
    labels = {line.text("file"): _values(line, names) for line in table}
    by_number = {_file_number(file): values for file, values in labels.items()}
    entries: list[Entry] = []
    for path, number in _models(tree):
        known = by_number.get(number)
        entries.append(Entry(path, f"file {number}", known or {}, known is not None, joined(path, "unet")))
    present = {number for _, number in _models(tree)}
    return Reading(
        variant="folders",
        count=len(entries),
        entries=entries,
        hyperparameters={},
        labels=_types(names),
        missing=[str(file)[:100] for file in labels if _file_number(file) not in present],
        base=BASE,
    )


def _file_number(file: str | None) -> int | None:
    """The number in ``17``, ``17.0`` or ``17.jpg``; None for anything else, which then names no adapter."""
    match = re.fullmatch(r"0*(\d{1,9})(\.0+|\.jpg)?", file or "")
    return int(match[1]) if match else None


def _types(names: Sequence[str]) -> Mapping[str, Type]:
    return dict.fromkeys(names, "bool")


@dataclass(frozen=True)
class Piece:
    """Where in a row a tensor is: its PEFT name, the first number, and its shape."""

    key: str
    start: int
    shape: tuple[int, int]


def _rows(tree: Tree, table: Table) -> Reading:
    weights, dimensions, config = (_find(tree, name) for name in (_WEIGHTS, _DIMENSIONS, CONFIG_NAME))
    if weights is None or dimensions is None or config is None:
        raise ZooError("a file of the layout is missing", file=tree.root, key=CONFIG_NAME)
    rows = read_plain_pickle(weights, _WEIGHTS_BYTES, mapped=True)
    if getattr(rows, "ndim", None) != 2 or not rows.is_floating_point():
        raise ZooError("is not one matrix of numbers", file=weights, expected="a tensor [models, numbers]")
    pieces = pieces_of(read_plain_pickle(dimensions), dimensions)
    width = pieces[-1].start + math.prod(pieces[-1].shape)
    if rows.shape[1] != width:
        raise ZooError("rows have another length than the tensors in them", expected=width, found=rows.shape[1])
    names = _attributes(table)
    lines = sum(1 for _ in table)
    if lines != len(rows):
        raise ZooError(
            "the attributes are told apart by their order alone, and there are more or fewer than adapters",
            file=table.file,
            expected=f"{len(rows)} lines",
            found=lines,
        )
    return Reading(
        variant="rows",
        count=len(rows),
        entries=_row_entries(rows, pieces, read_object(config), table, names),
        hyperparameters={},
        labels=_types(names),
        base=BASE,
        needs_out=True,
    )


def _row_entries(
    rows: Any, pieces: Sequence[Piece], config: Mapping[str, Any], table: Table, names: Sequence[str]
) -> Iterator[Entry]:
    for number, line in enumerate(table):
        row = np.asarray(rows[number].float().numpy())
        file = line.text("file")
        tensors = {
            piece.key: row[piece.start : piece.start + math.prod(piece.shape)].reshape(piece.shape).copy()
            for piece in pieces
        }
        group = f"file {file[:100]}" if file else f"row {number}"
        yield Entry(f"identities/{number:08d}", group, _values(line, names), tensors=tensors, config=config)


def pieces_of(dimensions: Any, file: Path) -> list[Piece]:
    """The tensors in a row, from ``weight_dimensions.pt``, under the names that PEFT gives them.

    Raises:
        ZooError: where an entry is no key of a factor with its count and shape.

    >>> pieces_of({"base_model.model.q.lora_A.weight": ((4,), (1, 4))}, Path("d.pt"))
    [Piece(key='base_model.model.q.lora_A.weight', start=0, shape=(1, 4))]
    """
    pieces: list[Piece] = []
    start = 0
    for key, stated in dimensions.items() if isinstance(dimensions, dict) else ():
        match = _KEY.fullmatch(key) if isinstance(key, str) else None
        shape: NDArray[np.int64] | None = None
        try:
            count, shape = int(stated[0][0]), np.asarray(stated[1], np.int64)
        except (TypeError, ValueError, IndexError, KeyError):
            count = -1
        if match is None or shape is None or shape.shape != (2,) or (shape < 1).any() or math.prod(shape) != count:
            raise ZooError(
                "is no table of factors", file=file, key=ascii(key)[:100], expected="key → ((count,), (rows, columns))"
            )
        half = "A" if match["half"] in ("A", "down") else "B"
        key = f"base_model.model.{match['site']}.lora_{half}.weight"
        pieces.append(Piece(key, start, (int(shape[0]), int(shape[1]))))
        start += count
    if not pieces:
        raise ZooError("is no table of factors", file=file, expected="a dictionary")
    return pieces


LAYOUT = Weights2Weights()
