"""One finetune in other clothes: gauge, rank padding, dtype, scale convention, order and names of layers, format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lorascope.adapter import Adapter, LowRank, Provenance, Update
from lorascope.errors import LorascopeError
from lorascope.formats import write
from lorascope.symmetry import balance, gauged, random_gauge

KINDS = ("gauge", "padding", "float16", "bfloat16", "order", "names")
"""The same to rounding of float32, or for float16 and bfloat16 to theirs in balanced factors."""


def variant(adapter: Adapter, kind: str, random: np.random.Generator) -> Adapter:
    """The same finetune of another kind."""
    if kind == "gauge":
        return gauged(adapter, lambda rank: random_gauge(rank, condition=10.0, rng=random), dtype=np.float32)
    if kind == "order":
        return adapter.with_sites(dict(reversed(adapter.items())))
    if kind == "names":
        return adapter.with_sites({f"model.{name}": update for name, update in adapter.items()})
    form: Callable[..., LowRank] = {"padding": padded, "float16": rounded, "bfloat16": rounded}[kind]
    return adapter.with_sites({name: form(update, kind) for name, update in adapter.items()})


def padded(update: Update, kind: str) -> LowRank:
    B, A, scale = update.factors(np.float64)
    B, A = np.pad(B * scale / 4, ((0, 0), (0, 3))), np.pad(A, ((0, 3), (0, 0)))
    return LowRank(B.astype(np.float32), A.astype(np.float32), scale=4.0, **facts(update))


def rounded(update: Update, kind: str) -> LowRank:
    dtype = np.float16 if kind == "float16" else ml_dtypes.bfloat16
    return LowRank(*(one.astype(dtype) for one in balance(*update.factors(np.float64))), **facts(update))


def facts(update: Update) -> dict[str, Any]:
    return {"layer": update.layer, "kernel": update.kernel, "is_transposed": update.is_transposed}


def changed(adapter: Adapter, random: np.random.Generator) -> Iterator[tuple[str, Adapter]]:
    """All of them by name."""
    for kind in KINDS:
        yield kind, variant(adapter, kind, random)


def stripped(adapter: Adapter) -> Adapter:
    """Without what a file says beside the updates."""
    return replace(adapter, provenance=Provenance(), leftovers={}, original=None, notes=())


def write_somehow(adapter: Adapter, path: Path, formats: tuple[str, ...]) -> Path:
    """Written in the first format that has names for its sites."""
    for format in formats:
        place = path if format in ("peft", "mlx") else path.with_suffix(".pt" if "list" in format else ".safetensors")
        try:
            write(adapter, place, format=format)
        except LorascopeError:
            continue
        return place
    raise AssertionError(f"no format holds {next(iter(adapter))}")


def written(adapter: Adapter, folder: Path, random: np.random.Generator) -> list[Path]:
    """Files of the adapter and of all variants in PEFT, and of the adapter in two other formats."""
    plain = stripped(adapter)
    paths = [folder / name for name in ("plain", *KINDS)]
    for path, one in zip(paths, [plain, *(one for _, one in changed(plain, random))], strict=True):
        write(one, path, format="peft")
    for format in ("kohya", "loralib"):
        paths.append(folder / f"{format}.safetensors")
        write(plain, paths[-1], format=format, dtype="float32")
    return paths
