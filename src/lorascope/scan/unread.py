"""The weights that lie beside an adapter and that reading it does not touch: named, and pickles of them scanned.

Another program may take another file of the folder than this one does: PEFT without safetensors takes the ``.bin``, and
unpickling runs whatever code it names. The scan looks at opcodes alone; nothing is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lorascope.errors import AdapterError
from lorascope.formats.pickle_file import foreign_globals
from lorascope.formats.source import CONFIG_NAME, WEIGHTS_SUFFIXES, chosen_name
from lorascope.scan.finding import Finding

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MAX_HEADER = 100_000_000  # of safetensors; eight letters of a text are a far larger number
_SHOWN = 8

_TRAINER_STATE = re.compile(r"(optimizer|scheduler|scaler|rng_state.*|training_args|trainer_state)\.(bin|pt|pth)")
_TRAINER_CLASSES = re.compile(
    r"transformers\.(training_args\w*|trainer_utils)\.[A-Z]\w*|accelerate\.(state|utils\.dataclasses)\.[A-Z]\w*"
    r"|trl\.[\w.]*config\.[A-Z]\w*|numpy\._?core\.multiarray\._reconstruct|numpy\.(ndarray|dtype)|_codecs\.encode"
)
"""What the pickles of a trainer's own state refer to where nothing is wrong: classes, and the arrays of NumPy."""


def beside_findings(folder: Path) -> list[Finding]:
    """The findings about the weights files of a folder that are not the one that reading it takes.

    Raises:
        AdapterError: where the folder cannot be listed.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise AdapterError(f"the folder cannot be read: {error.strerror}", file=folder) from error
    taken = (chosen_name(names), CONFIG_NAME)
    return unread_findings((folder / name for name in names if name not in taken), folder)


def unread_findings(paths: Iterable[Path], root: Path) -> list[Finding]:
    """A warning for each pickle among ``paths`` that can run code, and one note that names the other weights files."""
    findings: list[Finding] = []
    rest: list[str] = []
    for path in paths:
        if not is_weights_like(path):
            continue
        name = path.relative_to(root).as_posix()
        reason = None if path.suffix.lower() == ".npz" else _danger(path)
        if reason is None:
            rest.append(name)
        else:
            findings.append(
                Finding(
                    "pickle-beside",
                    "warning",
                    f"also here, not read: {name}, {reason}",
                    hint="delete it, or ask its author what it is for; never load it",
                )
            )
    if rest:
        shown = ", ".join(rest[:_SHOWN]) + (f" and {len(rest) - _SHOWN} more" if len(rest) > _SHOWN else "")
        findings.append(Finding("not-read", "note", f"also here, not read: {shown}"))
    return findings


def is_weights_like(path: Path) -> bool:
    """Whether a file is weights by its ending or by its first bytes; of pipes and devices nothing is read."""
    if not path.is_file():
        return False
    if path.suffix.lower() in (*WEIGHTS_SUFFIXES, *_PICKLE_SUFFIXES):
        return True
    start = _start(path)
    is_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _MAX_HEADER
    return is_safetensors or start.startswith(b"GGUF") or _is_pickled(path, start)


def _is_pickled(path: Path, start: bytes) -> bool:
    if start[:1] == b"\x80":
        return start[8:9] != b"{"
    return start.startswith(b"PK\x03\x04") and any(True for _ in _named(path))


def _named(path: Path) -> Iterator[str]:
    try:
        yield from foreign_globals(path)
    except AdapterError:
        yield "an archive that cannot be looked into"


def _danger(path: Path) -> str | None:
    """Why loading the file can do harm, or None where it is no pickle or names nothing but tensors."""
    start = _start(path)
    if path.suffix.lower() not in _PICKLE_SUFFIXES and not _is_pickled(path, start):
        return None
    try:
        foreign = foreign_globals(path)
    except AdapterError as error:
        return f"a pickle that cannot be scanned: {error.what}"
    if not foreign or (_TRAINER_STATE.fullmatch(path.name) and all(map(_TRAINER_CLASSES.fullmatch, foreign))):
        return None
    return f"is a pickle that refers to {', '.join(foreign[:5])}: loading it can run code"


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(16)
    except OSError:  # not readable for this user: nothing can be told of it
        return b""
