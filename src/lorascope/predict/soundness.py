"""Looking at every adapter of a zoo before anything is learnt from it, so that a damaged one is never met halfway.

An adapter is damaged where its files are missing or not what the zoo recorded, where they cannot be read, where a
factor holds NaN or infinity, or where an update is so large that float64 cannot hold the square of its norm.
``fit``, ``evaluate`` and ``bench`` treat it alike: by default it is an error that names it; asked to, they leave it
out, name it and count it. Adapters that the zoo's own records call diverged or unreadable were never part of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.adapter import LowRank
from lorascope.errors import LorascopeError, PredictorError
from lorascope.predict.dataset import Dataset
from lorascope.symmetry.stack import largest_entries, largest_product
from lorascope.zoo import Zoo
from lorascope.zoo.schema import SPLITS
from lorascope.zoo.verification import Defect, defect_of

SHOWN = 3
"""How many damaged adapters an error names one by one; `lorascope zoo verify` names all."""


def open_dataset(
    zoo: Zoo | str | Path,
    *,
    within: Sequence[str] = SPLITS,
    skip_damaged: bool = False,
    advance: Callable[[int], Any] | None = None,
) -> Dataset:
    """The dataset of a zoo, every adapter of which has been looked at.

    Args:
        zoo: a zoo or its folder.
        within: the splits that are wanted; others are neither read nor part of the dataset.
        skip_damaged: leave damaged adapters out; ``Dataset.damaged`` says which.
        advance: called with the number of adapters looked at.

    Raises:
        PredictorError: where an adapter is damaged, unless those are to be left out; where no adapter is left.
    """
    zoo = zoo if isinstance(zoo, Zoo) else Zoo.open(zoo)
    whole = Dataset.of(zoo)
    rows = {str(row["id"]): row for row in zoo.rows()}
    sound: list[int] = []
    damaged: list[Defect] = []
    for index in whole.where(*within):
        defect = defect_of(zoo, rows[whole.ids[index]]) or _unreadable(
            whole, int(index), rows[whole.ids[index]]["path"]
        )
        if defect is None:
            sound.append(int(index))
        else:
            damaged.append(defect)
        if advance is not None:
            advance(1)
    if damaged and not skip_damaged:
        shown = "; ".join(f"{one.path} ({one.what})" for one in damaged[:SHOWN])
        more = f"; and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
        remake = "`lorascope zoo repair` makes them again, " if zoo.is_forged else ""
        raise PredictorError(
            "the zoo has damaged adapters",
            file=zoo.path,
            expected="every adapter as it was recorded",
            found=f"{len(damaged)} damaged: {shown}{more}",
            hint=f"{remake}--skip-damaged leaves them out and counts them",
        )
    if not sound:
        raise PredictorError("the zoo has no adapter to use", file=zoo.path, found=f"{len(damaged)} damaged, 0 sound")
    return whole.subset(sound).without(damaged)


def _unreadable(dataset: Dataset, index: int, path: str) -> Defect | None:
    """What reading an adapter says against it: an error of its file, or a number in it that none can compute with."""
    try:
        for site, update in dataset.samples[index].read().items():
            for array in update.stored.values():
                if array.dtype.kind not in "biu" and not np.isfinite(array.astype(np.float64)).all():
                    return Defect("damaged", path, "holds a number that is not finite", dataset.ids[index])
            if isinstance(update, LowRank) and not _is_computable(update):
                return Defect("damaged", path, f"{site}: the update is too large to compute with", dataset.ids[index])
    except LorascopeError as error:
        return Defect("damaged", path, error.what, dataset.ids[index])
    except OSError as error:
        return Defect("damaged", path, error.strerror or "cannot be read", dataset.ids[index])
    return None


def _is_computable(update: LowRank) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        left, right = (float(largest_entries(X[None].astype(np.float64))[0]) for X in (update.B, update.A))
    return abs(update.scale) * left * right < largest_product(np.float64)
