"""A folder that someone else laid out: what is in it down to two levels, listed once, links to folders not followed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lorascope.errors import ZooError
from lorascope.formats.source import natural
from lorascope.zoo.assembly import check_stays

MAXIMUM_NAMES = 2_000_000
"""Names that are listed in all; more are refused, since they would be kept in memory."""


class Tree:
    """The folders and files below ``root``, by paths relative to it with ``/``.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "models" / "a_7").mkdir(parents=True)
    >>> [(path, match["n"]) for path, match in Tree(root).matching(re.compile(r"a_(?P<n>\\d+)"))]
    [('models/a_7', '7')]
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, tuple[list[str], list[str]]] = {}
        self._count = 0

    def folders(self, inside: str = "") -> list[str]:
        """The names of the folders in a folder, in natural order; hidden ones and links are left out."""
        return self._list(inside)[0]

    def files(self, inside: str = "") -> list[str]:
        """The names of the regular files in a folder and of links to such, in natural order; no hidden ones."""
        return self._list(inside)[1]

    def matching(self, pattern: re.Pattern[str]) -> list[tuple[str, re.Match[str]]]:
        """The folders at the first and second level whose whole name matches, with their relative paths."""
        return [
            (joined(inside, name), match)
            for inside in ("", *self.folders())
            for name in self.folders(inside)
            if (match := pattern.fullmatch(name))
        ]

    def files_matching(self, pattern: re.Pattern[str]) -> list[tuple[str, re.Match[str]]]:
        """As :meth:`matching`, of files in the folder itself and in its folders."""
        return [
            (joined(inside, name), match)
            for inside in ("", *self.folders())
            for name in self.files(inside)
            if (match := pattern.fullmatch(name))
        ]

    def file(self, *names: str) -> Path | None:
        """The first of these files that there is, in the folder itself or in one of its folders; None without.

        Raises:
            ZooError: where two folders have one of that name.
        """
        for name in names:
            places = [joined(inside, name) for inside in ("", *self.folders()) if name in self.files(inside)]
            if len(places) > 1:
                raise ZooError(
                    "two files of one name could be meant", file=self.root, key=name, found=" and ".join(places[:2])
                )
            if places:
                return self.at(places[0])
        return None

    def at(self, path: str) -> Path:
        """The path of a file of the tree, to be read.

        Raises:
            ZooError: where it is a link that leads out.
        """
        if (self.root / path).is_symlink():
            check_stays(self.root / path, self.root)
        return self.root / path

    def _list(self, inside: str) -> tuple[list[str], list[str]]:
        if inside not in self._listed:
            folders: list[str] = []
            files: list[str] = []
            try:
                with os.scandir(self.root / inside) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.name)
                        elif entry.is_file():
                            files.append(entry.name)
            except OSError as error:
                raise ZooError("the folder cannot be read", file=self.root / inside, found=error.strerror) from error
            self._count += len(folders) + len(files)
            if self._count > MAXIMUM_NAMES:
                raise ZooError("holds too many files", file=self.root, expected=f"at most {MAXIMUM_NAMES}")
            self._listed[inside] = (sorted(folders, key=natural), sorted(files, key=natural))
        return self._listed[inside]


def joined(inside: str, name: str) -> str:
    """``inside/name``, or the name alone where ``inside`` is empty."""
    return f"{inside}/{name}" if inside else name
