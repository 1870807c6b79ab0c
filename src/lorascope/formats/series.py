"""The checkpoints of one training run as one list in the order of their steps.

    <folder>/checkpoint-500/…                  PEFT, diffusers, Transformers' trainer
    <folder>/0000500_adapters.safetensors      MLX; .npz for its older trainer

What lies in the folder itself (the last state, saved once more) has no step and is no part of the series.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from lorascope.adapter import Adapter
from lorascope.errors import AdapterError, LorascopeError

_FOLDER = re.compile(r"checkpoint-(?P<step>\d{1,18})", re.ASCII)
_FILE = re.compile(r"(?P<step>\d{1,18})_adapters\.(?:safetensors|npz)", re.ASCII)


class Series(Sequence[tuple[int, Adapter]]):
    """(step, adapter) in the order of the steps; an adapter is read when it is asked for, and not kept.

    ``series[index]`` raises the error of a broken checkpoint. A loop passes over broken ones: each leaves one error in
    ``errors``.

    Args:
        paths: (step, path) of every checkpoint, in order.
    """

    def __init__(self, paths: Sequence[tuple[int, Path]]) -> None:
        self.paths = tuple(paths)
        self.errors: dict[Path, LorascopeError] = {}
        """Path → error, of the checkpoints that a loop could not read."""

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, broken ones included; nothing is read for it."""
        return [step for step, _ in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> tuple[int, Adapter]: ...
    @overload
    def __getitem__(self, index: slice) -> Series: ...
    def __getitem__(self, index: int | slice) -> tuple[int, Adapter] | Series:
        from lorascope.formats import read  # that package reads this module first

        if isinstance(index, slice):
            return Series(self.paths[index])
        step, path = self.paths[index]
        return step, read(path)

    def __iter__(self) -> Iterator[tuple[int, Adapter]]:
        for index, (_, path) in enumerate(self.paths):
            try:
                item = self[index]
            except LorascopeError as error:
                self.errors[path] = error
                continue
            self.errors.pop(path, None)
            yield item

    def __repr__(self) -> str:
        steps = self.steps
        return f"Series({len(steps)} checkpoints, steps {steps[0]} to {steps[-1]})"


def read_series(folder: str | os.PathLike[str]) -> Series:
    """The checkpoints in a folder, lazily.

    Args:
        folder: that of a training run, or any other with ``checkpoint-<step>`` folders or MLX's numbered files.

    Raises:
        AdapterError: where the folder is not there, or holds no checkpoints.

    >>> import tempfile, numpy as np
    >>> from lorascope.adapter import Adapter, LowRank
    >>> from lorascope.formats import write
    >>> run = Path(tempfile.mkdtemp())
    >>> for step in (10, 9):
    ...     write(Adapter({"q": LowRank(np.full((2, 1), float(step)), np.ones((1, 2)))}), run / f"checkpoint-{step}")
    >>> [(step, round(adapter.norm())) for step, adapter in read_series(run)]
    [(9, 18), (10, 20)]
    """
    root = Path(folder)
    try:
        paths = sorted(found for entry in root.iterdir() if (found := _step_of(entry)) is not None)
    except (OSError, ValueError) as error:
        raise AdapterError("no such folder", file=folder, found=getattr(error, "strerror", None)) from None
    if not paths:
        raise AdapterError(
            "no checkpoints in this folder",
            file=root,
            expected="folders such as checkpoint-500, or files such as 0000500_adapters.safetensors",
        )
    return Series(paths)


def _step_of(path: Path) -> tuple[int, Path] | None:
    match = _FOLDER.fullmatch(path.name) if path.is_dir() else _FILE.fullmatch(path.name)
    return None if match is None else (int(match["step"]), path)
