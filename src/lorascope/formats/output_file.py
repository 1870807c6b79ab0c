"""Output that is whole or absent: a temporary name beside the target, then one rename."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from lorascope.errors import OutputError


@contextmanager
def replaced_file(path: Path) -> Generator[Path]:
    """A temporary path to write to; it becomes ``path`` when the block ends well and vanishes when it does not.

    Raises:
        OutputError: where the folder or file cannot be written.
    """
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def written_folder(path: Path) -> Generator[Path]:
    """A folder to write to that becomes ``path``; into a folder that is there, its files move one by one.

    Raises:
        OutputError: where it cannot be written; a folder that was not there before is not left behind.
    """
    temporary: Path | None = None
    try:
        if path.exists() and not path.is_dir():
            raise OutputError("a file is in the way of the folder to write", file=path)
        path.parent.mkdir(parents=True, exist_ok=True)
        parent = path if path.is_dir() else path.parent
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=parent))
        yield temporary
        if path.is_dir():
            for file in sorted(temporary.iterdir(), reverse=True):
                file.replace(path / file.name)
        else:
            temporary.chmod(0o777 & ~_umask())
            temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def staged(path: Path) -> Generator[Path]:
    """A path of the same name in a folder of its own beside ``path``, to write a file or a folder to and look at it.

    What is there when the block ends well becomes ``path``; into a folder that is there, its files move one by one.

    Raises:
        OutputError: where it cannot be written; then, and when the block fails, nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent))
        yield temporary / path.name
        written = temporary / path.name
        if written.is_dir() and path.is_dir():
            for file in sorted(written.iterdir(), reverse=True):
                file.replace(path / file.name)
        else:
            written.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot be written: {error.strerror or error}", file=path)


def _umask() -> int:
    current = os.umask(0o022)  # the only portable way to ask is to set it
    os.umask(current)
    return current
