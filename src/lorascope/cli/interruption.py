"""Being told to stop from outside ends a verb as Ctrl-C does: nothing half done is left behind."""

from __future__ import annotations

import signal
from types import FrameType

_ASKED_TO_STOP = ("SIGTERM", "SIGHUP")


def stop_in_order() -> None:
    """Let the signals that ask a process to stop raise KeyboardInterrupt, so that temporary files are removed.

    A signal that the caller has set to be ignored (``nohup``) stays ignored; a second one ends the process at once.
    """
    for name in _ASKED_TO_STOP:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt
