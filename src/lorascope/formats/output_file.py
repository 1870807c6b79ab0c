"""Output that is whole or absent: a temporary name beside the target, then one rename.

A rename takes the place of whatever has the name, so that only regular files are renamed over: pipes, sockets and
devices are refused. A link to a regular file is replaced and not written through, since what it points to may belong
to others, as the blobs of the hub's cache do.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from lorascope.errors import OutputError

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@contextmanager
def replaced_file(path: Path) -> Generator[Path]:
    """A temporary path to write to; it becomes ``path`` when the block ends well and vanishes when it does not.

    Raises:
        OutputError: where the folder or file cannot be written, or what is at ``path`` is no regular file.
    """
    temporary: Path | None = None
    try:
        _check_replaceable(path)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        temporary.chmod(stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask())
        _rename(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def written_folder(path: Path, *, is_replaced: bool = False) -> Generator[Path]:
    """A folder to write to that becomes ``path``; into a folder that is there, its files move one by one.

    Args:
        path: the folder.
        is_replaced: what is in a folder that is there goes, once the new one is whole.

    Raises:
        OutputError: where it cannot be written; a folder that was not there before is not left behind.
    """
    temporary: Path | None = None
    try:
        if os.path.lexists(path) and not path.is_dir():
            raise OutputError("a file is in the way of the folder to write", file=path)
        check_way(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        is_replaced = is_replaced and _is_filled(path)
        before: frozenset[str] = _entries(path) if is_replaced else frozenset()
        parent = path.resolve().parent if is_replaced else path if path.is_dir() else path.parent
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=parent))
        yield temporary
        if is_replaced:
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))  # what was private stays so
            _swap(temporary, path.resolve(), before)
        elif path.is_dir():
            _move_files(temporary, path)
        else:
            temporary.chmod(0o777 & ~_umask())
            temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def staged(path: Path, *, is_replaced: bool = False) -> Generator[Path]:
    """A path of the same name in a folder of its own beside ``path``, to write a file or a folder to and look at it.

    What is there when the block ends well becomes ``path``; into a folder that is there, its files move one by one.

    Args:
        path: the file or folder.
        is_replaced: what is in a folder that is there goes, once the new one is whole.

    Raises:
        OutputError: where it cannot be written, or what is at ``path`` is neither a folder nor a regular file; then,
            and when the block fails, nothing is left behind.
    """
    temporary: Path | None = None
    try:
        _check_replaceable(path)
        check_way(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        is_replaced = is_replaced and _is_filled(path)
        before: frozenset[str] = _entries(path) if is_replaced else frozenset()
        parent = path.resolve().parent if is_replaced else path.parent
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=parent))
        yield temporary / path.name
        written = temporary / path.name
        if written.is_dir() and is_replaced:
            _swap(written, path.resolve(), before)
        elif written.is_dir() and path.is_dir():
            _move_files(written, path)
        else:
            _rename(written, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, path: Path) -> None:
    """Give ``temporary`` its name; what took that name since it was begun is looked at again."""
    _check_replaceable(path)
    temporary.replace(path)


def _is_filled(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())


def _swap(new: Path, folder: Path, before: frozenset[str]) -> None:
    """Give a new folder the place of another, which is deleted; where that fails or is interrupted it is put back.

    Args:
        new: the folder.
        folder: what it replaces.
        before: the entries of that when the work began; what came since is nobody's to delete.
    """
    since = sorted(_entries(folder) - before)
    if since:
        raise OutputError("others wrote into the folder to replace", file=folder, found=", ".join(since[:5]))
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", suffix=".old", dir=folder.parent)) / folder.name
    try:
        folder.rename(aside)
        new.rename(folder)
    finally:
        if os.path.lexists(aside) and os.path.lexists(new) and not os.path.lexists(folder):
            aside.rename(folder)
        if not os.path.lexists(aside) or not os.path.lexists(new):
            shutil.rmtree(aside.parent, ignore_errors=True)
        else:  # another run has taken the name: what was there stays beside it
            raise OutputError("another took its place; what was there is kept", file=folder, found=aside)


def _entries(folder: Path) -> frozenset[str]:
    """All files and folders in a folder, relative to it."""
    return frozenset(
        os.path.relpath(Path(here) / name, folder)
        for here, folders, names in os.walk(folder)
        for name in (*folders, *names)
    )


def _move_files(temporary: Path, folder: Path) -> None:
    files = sorted(temporary.iterdir(), reverse=True)
    for file in files:  # all of them before the first is moved
        _check_replaceable(folder / file.name)
    try:
        for file in files:
            _rename(file, folder / file.name)
    except KeyboardInterrupt:  # new weights under an old configuration would be another adapter
        for file in files:
            if os.path.lexists(file):
                file.replace(folder / file.name)
        raise


def check_way(path: Path) -> None:
    """Refuse ``new/../place`` where ``new`` is not there: once it is made, the path leads to another place.

    Raises:
        OutputError: naming the folder that is missing.
    """
    for number, part in enumerate(path.parts):
        way = Path(*path.parts[:number])
        if part == ".." and number and not way.is_dir():
            raise OutputError("the path goes through a folder that is not there", file=path, found=way)


def _check_replaceable(path: Path) -> None:
    """Check that nothing would be lost but a regular file or a link to one; folders refuse the rename themselves.

    Raises:
        OutputError: saying what is there.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise OutputError("a link that leads nowhere is in the way", file=path, hint="give a new name") from None
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OutputError(
            "what is there is no file that could be replaced",
            file=path,
            expected="a regular file, or nothing",
            found=_KINDS.get(stat.S_IFMT(mode), "something else"),
            hint="give a new name",
        )


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot be written: {error.strerror or error}", file=path)


def _umask() -> int:
    current = os.umask(0o022)  # the only portable way to ask is to set it
    os.umask(current)
    return current
