"""Rows of one fused weight as one update of the whole weight, for formats that adapt whole layers.

    ΔW = [s₁ B₁ A₁; 0; s₂ B₂ A₂]  =  s · [B₁ 0; 0 0; 0 B₂] · [A₁; A₂]        exact; the ranks add up

The rows of the whole weight are those of the base, or what the format of the file fixes (``Format.rows_of``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter, Expanded, LowRank, Update
from lorascope.adapter.site import Part, is_rows, path_and_part
from lorascope.errors import AdapterError
from lorascope.formats import format_named
from lorascope.formats.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False, kw_only=True)
class FusedRows(Expanded):
    """ΔW of a weight of which only some rows change.

    Args:
        parts: (first row, update of these rows).
    """

    kind: ClassVar[str] = "rows"
    parts: tuple[tuple[int, LowRank], ...]

    @property
    def rank(self) -> int:
        """The sum of the ranks."""
        return self.dim

    def _product(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        B = np.zeros((self.shape[0], self.rank), dtype)
        columns = 0
        factors = [(begin, update.factors(dtype)) for begin, update in self.parts]
        for begin, one in factors:
            rows, rank = one.B.shape
            B[begin : begin + rows, columns : columns + rank] = one.B * (1.0 if one.scale == self.scale else one.scale)
            columns += rank
        return B, np.concatenate([one.A for _, one in factors])

    @property
    def factor_dtype(self) -> np.dtype[Any]:
        """That of the parts where no number changes."""
        dtypes = {tensor.dtype for tensor in self.stored.values()}
        has_scale = all(update.scale == self.scale for _, update in self.parts)
        return dtypes.pop() if len(dtypes) == 1 and has_scale else super().factor_dtype


def with_whole_rows(adapter: Adapter, checkpoint: Checkpoint | None) -> Adapter:
    """The adapter with one site for each weight of which it has rows, where the rows of the whole weight are known.

    >>> B, A = np.ones((2, 1)), np.ones((1, 3))
    >>> adapter = Adapter({"qkv[0:2]": LowRank(B, A), "qkv[4:6]": LowRank(B, 2 * A), "o": LowRank(B, A)})
    >>> list(with_whole_rows(adapter, None))
    ['qkv[0:2]', 'qkv[4:6]', 'o']
    """
    groups: dict[str, list[str]] = {}
    for site in adapter:
        if is_rows(site):
            groups.setdefault(path_and_part(site)[0], []).append(site)
    fused: dict[str, Update] = {}
    for path, sites in groups.items():
        rows = _rows_of(adapter, sites[0], checkpoint)
        update = None if rows is None else _fused({site: adapter[site] for site in sites}, rows)
        if update is not None and path not in adapter:
            fused[path] = update
    if not fused:
        return adapter
    sites = {(path if (path := path_and_part(site)[0]) in fused else site): update for site, update in adapter.items()}
    return adapter.with_sites(sites | fused)


def _rows_of(adapter: Adapter, site: str, checkpoint: Checkpoint | None) -> int | None:
    if checkpoint is not None:
        name = checkpoint.name_of(site)
        return None if name is None else checkpoint.tensors[name].shape[0]
    if adapter.provenance.format in ("memory", "mapping"):
        return None
    return format_named(adapter.provenance.format).rows_of(adapter[site])


def _fused(updates: Mapping[str, Update], rows: int) -> FusedRows | None:
    """The update of the whole weight, None where the parts are not of one plain linear layer.

    Raises:
        AdapterError: where two parts overlap, or one has other rows than its name says.
    """
    parts: list[tuple[Part, str, LowRank]] = []
    for site, update in updates.items():
        _, part = path_and_part(site)
        if part is None or not isinstance(update, LowRank) or update.layer != "linear":
            return None
        if update.is_transposed or update.bias is not None:
            return None
        end = part.begin + update.shape[0]
        if part.end != end or end > rows or any(part.overlaps(other) for other, _, _ in parts):
            raise AdapterError(
                "the rows of a part do not fit the whole weight or another part",
                key=site,
                expected=f"{update.shape[0]} rows within {rows}",
                found=f"{part.begin} to {part.end}",
            )
        parts.append((part, site, update))
    columns = {update.shape[1] for _, _, update in parts}
    if len(columns) > 1:
        raise AdapterError("the parts of one weight have several input sizes", key=parts[0][1], found=sorted(columns))
    scales = {update.scale for _, _, update in parts}
    stored = {f"{role} of {site}": tensor for _, site, update in parts for role, tensor in update.stored.items()}
    return FusedRows(
        stored=stored,
        keys={"B": parts[0][2].keys[0]},
        shape=(rows, columns.pop()),
        dim=sum(update.rank for _, _, update in parts),
        scale=scales.pop() if len(scales) == 1 else 1.0,
        parts=tuple((part.begin, update) for part, _, update in parts),
    )
