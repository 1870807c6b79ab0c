"""What may be written where: one rule for all verbs that make something.

What is there stays, unless it is to be overwritten: then a file takes the place of a file, and a folder that of one in
which nothing else is than what is written, so that nothing is lost and nothing old lies beside the new. An empty folder
is nothing. The name says what it is of: a file has the suffix of its format, without which nobody would find it as an
adapter, and a folder has the suffix of no weights file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from lorascope.adapter import Adapter
from lorascope.errors import OutputError
from lorascope.formats.output_file import check_way
from lorascope.formats.registry import Format, format_named, formats
from lorascope.formats.source import WEIGHTS_SUFFIXES

_OVERWRITE = "give a new name, or replace it: --overwrite (is_overwritten=True)"


def chosen_format(path: Path, to: str | None, adapters: Iterable[Adapter] = (), default: str = "peft") -> str:
    """The format to write to ``path``: the one asked for; else that of a file name, else the default.

    A file name, such as ``x.safetensors``, is taken for the format of the adapters where they are all of one that is
    written to such files, and for the only format of such files; several could be meant by any other.

    Args:
        path: where to write.
        to: the name of a format, None where none is asked for.
        adapters: of which the new one is made.
        default: the format where the name is not that of a file.

    Raises:
        OutputError: where the name is that of a file and no format is chosen; it lists those that there are.

    >>> chosen_format(Path("both"), None), chosen_format(Path("x.gguf"), None), chosen_format(Path("x.pt"), "loralib")
    ('peft', 'gguf', 'loralib')
    """
    suffix = path.suffix.lower()
    if to is not None or suffix not in WEIGHTS_SUFFIXES:
        return to or default
    named = [one.name for one in formats() if one.write and not one.is_folder and suffix in one.suffixes]
    own = {adapter.provenance.format for adapter in adapters}
    chosen = [name for name in named if own == {name}] or named
    if len(chosen) == 1:
        return chosen[0]
    kind = f"the name of a file, and {default} is a folder" if format_named(default).is_folder else "the name of a file"
    raise OutputError(
        f"{kind}: the format is not chosen",
        file=path,
        expected=f"--to {', '.join(chosen)}" if chosen else "a name that ends in .safetensors or .gguf, or a folder's",
        hint=f"add --to FORMAT for a file; for a folder leave out {path.suffix}",
    )


def check_output(path: Path, member: Format, *, is_overwritten: bool = False) -> None:
    """Refuse a place where an adapter of that format may not be written, before any work.

    Raises:
        OutputError: where the name is not one for the format, or something is there.
    """
    is_folder = member.is_folder or (bool(member.folder_files) and (path.is_dir() or not path.suffix))
    if is_folder:
        check_folder(path, member.folder_files, is_overwritten=is_overwritten, what=member.name)
        return
    if path.suffix.lower() not in member.suffixes:
        stem = path.stem if path.suffix[1:].isalpha() else path.name  # v1.5 has no ending
        raise OutputError(
            f"{member.name} is written as a file that ends in {' or '.join(member.suffixes)}",
            file=path,
            found="a folder" if path.is_dir() else path.suffix or "no ending",
            hint=f"name it {stem}{member.suffix}, or choose another format with --to: peft is a folder",
        )
    check_file(path, is_overwritten=is_overwritten)


def check_file(path: Path, *, is_overwritten: bool = False) -> None:
    """Refuse to write a file where something is.

    Raises:
        OutputError: saying what is there.
    """
    check_way(path)
    if path.is_dir():
        raise OutputError("a folder is in the way of the file to write", file=path, hint="give a new name")
    if os.path.lexists(path) and not is_overwritten:
        raise OutputError("the output is already there", file=path, found="a file", hint=_OVERWRITE)


def check_folder(
    path: Path, files: Collection[str] | None, *, is_overwritten: bool = False, what: str = "the output"
) -> None:
    """Refuse to write a folder where something is.

    Args:
        path: the folder.
        files: what will be written into it, relative to it, with ``/``; None where that is not known yet.
        is_overwritten: whether a folder in which nothing but these files is may be replaced.
        what: is written as a folder; for the error.

    Raises:
        OutputError: saying what is there.
    """
    if path.suffix.lower() in WEIGHTS_SUFFIXES:
        raise OutputError(
            f"{what} is written as a folder, and this is the name of a file",
            file=path,
            hint=f"leave out {path.suffix}, or choose a format of files with --to: kohya, diffusers …",
        )
    check_way(path)
    if path == Path():
        raise OutputError("the place to write to is empty, or the folder that this runs in", hint="name a folder")
    if not path.is_dir():
        if os.path.lexists(path):
            raise OutputError(
                f"{what} is written as a folder, and a file is in the way", file=path, hint="give a new name"
            )
        return
    if not any(path.iterdir()):
        return
    if not is_overwritten:
        raise OutputError("the output is already there: the folder is not empty", file=path, hint=_OVERWRITE)
    others = [] if files is None else list(_others(path, files))
    if others:
        raise OutputError(
            "the folder holds more than what would be replaced",
            file=path,
            found=", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else ""),
            hint="give a new name, or move these away",
        )


def _others(root: Path, files: Collection[str]) -> Iterator[str]:
    """What is in a folder and is none of these files, nor a folder on the way to one."""
    known = set(files)
    parents = {parent.as_posix() for file in known for parent in PurePosixPath(file).parents}
    for here, folders, names in os.walk(root):
        inside = Path(here).relative_to(root)
        for name in sorted(names):
            place = (inside / name).as_posix()
            if place not in known or not stat.S_ISREG(_mode(root / place)):
                yield place
        for name in sorted(folders):
            place = (inside / name).as_posix()
            if place not in parents or (root / place).is_symlink():
                yield f"{place}/"
                folders.remove(name)


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode  # a link to a regular file may be replaced
    except OSError:
        return 0
