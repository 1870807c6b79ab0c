"""Being told to stop from outside ends a verb as Ctrl-C does: nothing half done is left behind.

A reader that has read enough (``| head -1``) ends it as well, without a word and with the exit code that a shell
gives programs that such a pipe has ended.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from lorascope.errors import LorascopeError

_ASKED_TO_STOP = ("SIGTERM", "SIGHUP")


def stop_in_order() -> None:
    """Let the signals that ask a process to stop raise KeyboardInterrupt, so that temporary files are removed.

    A signal that the caller has set to be ignored (``nohup``) stays ignored; a second one ends the process at once.
    """
    for name in _ASKED_TO_STOP:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)


CLOSED_PIPE = 141
"""128 + SIGPIPE."""


def is_of_a_closed_pipe(error: BaseException | None) -> bool:
    """Whether writing into a closed pipe is behind it; libraries make an exit of it, with code 1.

    What is behind an error of ours is not the reader's doing: a server that hung up is a broken pipe as well.

    >>> is_of_a_closed_pipe(SystemExit(1)), is_of_a_closed_pipe(BrokenPipeError())
    (False, True)
    """
    while error is not None and not isinstance(error, LorascopeError):
        if isinstance(error, BrokenPipeError):
            return True
        error = error.__context__
    return False


def write_nowhere() -> None:
    """Let what is still to be written, as when Python ends, vanish."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt
