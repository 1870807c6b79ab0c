"""Pieces of a file on the hub, by HTTP range requests through the hub's own client: its token, endpoint and proxies.

The first request brings the start of the file, which for most adapters holds the whole header, and the file's size.
Pieces that lie close together are fetched as one. Nothing is kept on disk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lorascope.errors import AdapterError
from lorascope.formats.hub import HubFile, client, told

FIRST = 1 << 17
"""Bytes of the first request: the header of 900 tensors."""

GAP = 1 << 14
"""Bytes between two pieces that are fetched along rather than asked for by another request."""

MAX_REQUESTS = 1024
"""More requests than this are slower than the whole file."""

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)


class NoRangesError(Exception):
    """Pieces of this file cannot be fetched, or not with profit; its text says why."""


class RemoteFile:
    """A file of a repository, of which only pieces are fetched.

    Args:
        file: which.

    Raises:
        AdapterError: where the file is not there or the hub cannot be reached.
        NoRangesError: where it is no safetensors file, or the server serves no pieces.
    """

    def __init__(self, file: HubFile) -> None:
        self.file = file
        self._place = 0
        self._url: str = client().hf_hub_url(file.hub_id.repo, file.name, revision=file.revision)
        self._headers: dict[str, str] = client().utils.build_hf_headers()
        self._start, self.size = self._requested(0, FIRST)
        if self._start[8:9] != b"{":
            raise NoRangesError("this is no safetensors file, whose header could be read alone")

    def read(self, count: int) -> bytes:
        """The next bytes, as of an open file."""
        begin = self._place
        self._place = min(begin + count, self.size)
        return self._piece(begin, self._place)

    def fetch(self, pieces: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes from ``begin`` to ``end`` of every piece."""
        spans = joined([piece for piece in pieces if piece[1] > len(self._start)], GAP)
        if len(spans) > MAX_REQUESTS or 2 * sum(end - begin for begin, end in spans) > self.size:
            raise NoRangesError("the scales are spread over the whole file")
        with ThreadPoolExecutor(8) as pool:
            data = pool.map(self._piece, (begin for begin, _ in spans), (end for _, end in spans))
            found = dict(zip(spans, data, strict=True))
        return [self._cut(begin, end, found) for begin, end in pieces]

    def _cut(self, begin: int, end: int, found: dict[tuple[int, int], bytes]) -> bytes:
        if end <= len(self._start):
            return self._start[begin:end]
        span = next(span for span in found if span[0] <= begin and end <= span[1])
        return found[span][begin - span[0] : end - span[0]]

    def _piece(self, begin: int, end: int) -> bytes:
        if end <= len(self._start):
            return self._start[begin:end]
        data, size = self._requested(begin, end)
        if size != self.size or len(data) != end - begin:
            raise AdapterError("the hub sent another piece than was asked for", file=self.file)
        return data

    def _requested(self, begin: int, end: int) -> tuple[bytes, int]:
        """The bytes of one request, and the size of the whole file."""
        asked = {**self._headers, "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        with told(self.file.hub_id):
            session: Any = client().utils.get_session()
            with session.stream("GET", self._url, headers=asked, timeout=30) as response:
                if response.status_code >= 400:
                    response.read()
                    client().utils.hf_raise_for_status(response)
                match = _RANGE.fullmatch(response.headers.get("content-range", ""))
                if response.status_code != 206 or match is None or int(match[1]) != begin:
                    raise NoRangesError("the server sends no pieces of files")
                data = bytearray()
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) >= end - begin:  # a server that sends more than it said is not listened to
                        break
        return bytes(data[: end - begin]), int(match[3])


def joined(pieces: Sequence[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """The pieces in order, those no further than ``gap`` apart as one.

    >>> joined([(90, 99), (0, 4), (6, 8)], gap=10)
    [(0, 8), (90, 99)]
    """
    spans: list[tuple[int, int]] = []
    for begin, end in sorted(pieces):
        if spans and begin - spans[-1][1] <= gap:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((begin, end))
    return spans
