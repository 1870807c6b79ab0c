"""A function of the user's own, named as ``FILE.py:FUNCTION``: the file is executed."""

from __future__ import annotations

import runpy
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorascope.errors import LorascopeError


def function_in(text: str, option: str) -> Callable[..., Any]:
    """The function of that name in the file of that path, which is executed; its failures name the line.

    Raises:
        LorascopeError: where there is no such file or function, or the file fails.

    >>> function_in("loss.py", "--learn")
    Traceback (most recent call last):
    ...
    lorascope.errors.LorascopeError: --learn: not a function in a file (expected FILE.py:FUNCTION, found loss.py)
    """
    path, separator, name = text.rpartition(":")
    if not separator or not path or not name:
        raise LorascopeError("not a function in a file", key=option, expected="FILE.py:FUNCTION", found=text)
    if not Path(path).is_file():
        raise LorascopeError("there is no such file", file=path, key=option)
    try:
        found = runpy.run_path(path).get(name)
    except Exception as error:  # whatever the user's own code raises
        raise LorascopeError(
            "the file fails when it is executed", file=path, found=f"{type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise LorascopeError("the file defines no such function", file=path, key=name)

    def guarded(*arguments: Any) -> Any:
        try:
            return found(*arguments)
        except LorascopeError:
            raise
        except Exception as error:  # whatever the user's own code raises
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
            where = f"{name}, line {lines[-1]}" if lines else name
            raise LorascopeError("the function fails", file=path, key=where, found=repr(error)) from error

    return guarded
