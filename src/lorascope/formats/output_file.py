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
        temporary.chmod(0o666 & ~_umask())
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
        path.parent.mkdir(parents=True, exist_ok=True)
        is_replaced = is_replaced and _is_filled(path)
        parent = path.resolve().parent if is_replaced else path if path.is_dir() else path.parent
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=parent))
        yield temporary
        if is_replaced:
            temporary.chmod(0o777 & ~_umask())
            _swap(temporary, path.resolve())
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
        path.parent.mkdir(parents=True, exist_ok=True)
        is_replaced = is_replaced and _is_filled(path)
        parent = path.resolve().parent if is_replaced else path.parent
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=parent))
        yield temporary / path.name
        written = temporary / path.name
        if written.is_dir() and is_replaced:
            _swap(written, path.resolve())
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


def _swap(new: Path, folder: Path) -> None:
    """Give a new folder the place of another, which is deleted; where that fails the other is put back."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", suffix=".old", dir=folder.parent)) / folder.name
    try:
        folder.rename(aside)
        try:
            new.rename(folder)
        except OSError:
            aside.rename(folder)
            raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def _move_files(temporary: Path, folder: Path) -> None:
    files = sorted(temporary.iterdir(), reverse=True)
    for file in files:  # all of them before the first is moved
        _check_replaceable(folder / file.name)
    for file in files:
        _rename(file, folder / file.name)


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
