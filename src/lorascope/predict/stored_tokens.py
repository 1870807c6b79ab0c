"""Tokens in an unnamed temporary file, read site by site: those of thousands of adapters are more than memory holds.

A side of 512 dimensions at rank 16 takes 64 kB in float64: 3 MB an adapter at 24 sites, before principal directions
leave 32 of the 512. Which directions these are depends on which adapters teach them, so the tokens are needed whole
more than once; each time one site after another.

What is stored are the very numbers: nothing that is computed from them differs from what it would be in memory. Where
temporary files are kept in memory themselves (tmpfs), nothing is gained.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from lorascope.errors import PredictorError

HINT = "set TMPDIR to a folder with more room, fit on fewer adapters, or use a model of smaller inputs, such as ridge"


class Chunk(NamedTuple):
    """A block of adapters at a run of sites: stored as [sites, adapters, h, k], from ``offset`` bytes on."""

    adapters: range
    sites: range
    offset: int
    rank: int


class TokenFile:
    """A file that is gone with the last of the tokens in it.

    Args:
        numbers: how many it will hold, about.

    Raises:
        PredictorError: where there is no room for so many.
    """

    def __init__(self, numbers: int) -> None:
        self._numbers = numbers
        try:
            self._folder = tempfile.gettempdir()
            if 8 * numbers > shutil.disk_usage(self._folder).free:
                raise self._without_room()
            self._file = cast("IO[bytes]", tempfile.TemporaryFile(prefix="lorascope-"))  # noqa: SIM115  # lives as long as its tokens
        except OSError as error:
            raise PredictorError("the tokens of the adapters cannot be stored", found=error, hint=HINT) from error
        weakref.finalize(self, self._file.close)
        self._chunks: dict[str, list[Chunk]] = {}
        self._shapes: dict[str, tuple[int, int]] = {}

    def put(self, name: str, adapter: int, site: int, tokens: NDArray[np.float64]) -> None:
        """Tokens [b, s, h, k] of the adapters and the sites from these places on.

        Raises:
            PredictorError: where there is no room left.
        """
        count, sites, h, k = tokens.shape
        try:
            offset = self._file.seek(0, 2)
            self._file.write(np.ascontiguousarray(tokens.swapaxes(0, 1), np.float64).data)
            self._file.flush()
        except OSError as error:
            raise self._without_room() from error
        chunk = Chunk(range(adapter, adapter + count), range(site, site + sites), offset, k)
        self._chunks.setdefault(name, []).append(chunk)
        self._shapes[name] = max(self._shapes.get(name, (0, 0))[0], chunk.sites.stop), h

    def tokens(self, count: int, rank: int) -> dict[str, StoredTokens]:
        """All that was put in, of ``count`` adapters, with zeros up to this rank."""
        return {
            name: StoredTokens(self, tuple(chunks), self._shapes[name], rank, np.arange(count))
            for name, chunks in self._chunks.items()
        }

    def read(self, offset: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """The numbers from ``offset`` bytes on; a mapping, so that no position in the file is shared."""
        return np.memmap(self._file, np.float64, "r", offset, shape)  # type: ignore[arg-type]  # any file with a number

    def _without_room(self) -> PredictorError:
        return PredictorError(
            "there is no room for the tokens of so many adapters",
            expected=f"{8e-9 * self._numbers:.2f} GB free in {self._folder}",
            found=f"{1e-9 * shutil.disk_usage(self._folder).free:.2f} GB",
            hint=HINT,
        )


@dataclass(frozen=True, eq=False)
class StoredTokens:
    """[n, S, h, k] in float64, of which a run of adapters at one site is read at a time.

        tokens[adapters]          the same of some adapters, nothing read: indices, or which
        tokens[run, site]         [·, h, k] of a slice of the adapters
        np.asarray(tokens)        all

    >>> file = TokenFile(24)
    >>> file.put("left0", 0, 0, np.arange(24.0).reshape(2, 3, 4, 1))
    >>> tokens = file.tokens(2, 1)["left0"]
    >>> tokens.shape, tokens[np.array([1])][:, 2].ravel().tolist()
    ((2, 3, 4, 1), [20.0, 21.0, 22.0, 23.0])
    """

    file: TokenFile
    chunks: Sequence[Chunk]
    sides: tuple[int, int]
    rank: int
    places: NDArray[np.int64]
    nbytes = 0
    """In memory, as good as nothing."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, S, h, k)."""
        return (len(self.places), *self.sides, self.rank)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, tuple):
            return replace(self, places=self.places[key])
        rows, site = cast("tuple[slice, int]", key)
        places = self.places[rows]
        found = np.zeros((len(places), self.sides[1], self.rank))
        for chunk in self.chunks:
            own = np.flatnonzero((places >= chunk.adapters.start) & (places < chunk.adapters.stop))
            if site in chunk.sites and len(own):
                shape = len(chunk.adapters), self.sides[1], chunk.rank
                offset = chunk.offset + 8 * (site - chunk.sites.start) * int(np.prod(shape))
                block = self.file.read(offset, shape)
                found[own, :, : chunk.rank] = block[places[own] - chunk.adapters.start]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = np.stack([self[:, site] for site in range(self.sides[0])], axis=1)
        return whole if dtype is None else whole.astype(dtype, copy=False)
