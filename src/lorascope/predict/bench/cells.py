"""What was measured so far, on disk: one small file per fitted member, so that a run goes on where it stopped.

A cell is a member: one model with its options, one target of one zoo, one seed. Its name is a hash of all that
determines it, the code of lorascope and the versions of the libraries included, so that a stale one is never met. It
holds the measurements by their own keys; a run that asks for one that is not there fits the member again and adds it.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lorascope.errors import LorascopeError, OutputError, PredictorError, ZooError
from lorascope.predict.bench.contenders import Contender
from lorascope.predict.bench.question import Question
from lorascope.version import __version__
from lorascope.zoo.regular import read_regular
from lorascope.zoo.store import write_json

SCHEMA_VERSION = 1
LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch")

Result = dict[str, Any]


class Cells:
    """The cells in a folder; without one they are kept for the time of the run alone."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(
                    "the folder of the cells cannot be made", file=folder, found=error.strerror
                ) from error

    def read(self, key: dict[str, Any]) -> dict[str, Result]:
        """What was measured of a member; nothing where there is no cell, or a damaged one."""
        if self._folder is None:
            return {}
        try:
            value = json.loads(read_regular(self._folder / _name(key)))
            return dict(value["measured"]) if value["key"] == json.loads(json.dumps(key)) else {}
        except (OSError, ZooError, ValueError, LookupError, TypeError, RecursionError):
            return {}  # it is measured again, which costs time and nothing else

    def write(self, key: dict[str, Any], measured: dict[str, Result]) -> None:
        """Keep what was measured of a member, whole or not at all."""
        if self._folder is not None and measured:
            value = {"schema_version": SCHEMA_VERSION, "key": key, "measured": measured}
            write_json(self._folder / _name(key), value)


def key_of(question: Question, data: str, contender: Contender, seed: int) -> dict[str, Any]:
    """All that determines a member: ``data`` is the fingerprint of the dataset."""
    return {
        "data": data,
        "target": question.target.name,
        "task": question.target.task,
        "model": contender.model.name,
        "options": {name: list(value) if isinstance(value, tuple) else value for name, value in options(contender)},
        "shuffled": contender.is_shuffled,
        "seed": seed,
        "code": code_digest(type(contender.model)),
        "versions": versions(),
    }


def options(contender: Contender) -> list[tuple[str, Any]]:
    """The options of its model with their values."""
    model: Any = contender.model
    return [(field.name, getattr(model, field.name)) for field in dataclasses.fields(model)]


@cache
def versions() -> dict[str, str | None]:
    """Of lorascope and of the libraries that numbers come from; None where one is not installed."""
    found: dict[str, str | None] = {"lorascope": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@cache
def code_digest(model: type[Any]) -> str:
    """A hash of lorascope's own code, and of the file that defines the model where another package does."""
    root = Path(__file__).parents[2]
    files = sorted(root.rglob("*.py"))
    own = inspect.getsourcefile(model)
    if own is not None and root not in Path(own).parents:
        files.append(Path(own))
    digest = blake2b(digest_size=16)
    for file in files:
        digest.update(str(file.relative_to(root) if root in file.parents else file.name).encode() + file.read_bytes())
    return digest.hexdigest()


def _name(key: dict[str, Any]) -> str:
    return blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest() + ".json"


def reason_of(error: Exception) -> str:
    """An error in one line; a model's refusal without the adapter that it met first, since it holds for others too."""
    if isinstance(error, PredictorError):
        error = PredictorError(error.what, key=error.key, expected=error.expected, found=error.found)
    if isinstance(error, LorascopeError):
        return str(error).splitlines()[0]
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
