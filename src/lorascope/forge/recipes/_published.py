"""Published models: a folder of the user's own or a snapshot of a repository of the Hub, checked and known by hash.

Of a repository only the files that are named are fetched: weights in safetensors, configurations and vocabularies. A
pattern ``a|b`` takes b where there is no a; b may be a pickled file, which is then read by PyTorch's unpickler that
builds tensors and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lorascope.errors import AdapterError, ForgeError
from lorascope.formats.hub import HubId, client, parse_hub_id, told
from lorascope.zoo.store import sha256_of


def folder_of(name: str, needed: Sequence[str], option: str) -> Path:
    """The folder with the needed files: the one of that path, or else of the repository ``owner/name[@revision]``.

    Args:
        name: path or repository.
        needed: patterns of paths in the folder; there must be a file for each.
        option: the option of the recipe that names it, for messages.

    Raises:
        ForgeError: where there is no such folder or repository, or it has not what is needed.
    """
    folder = Path(name)
    if not folder.is_dir():
        hub_id = parse_hub_id(name)
        if hub_id is None:
            raise ForgeError(
                "there is no such folder",
                key=option,
                expected="a folder, or owner/name of a repository of the Hub",
                found=name,
                hint=f"name one that has {', '.join(needed)}: --set {option}=DIR",
            )
        folder = _fetched(hub_id, needed, option)
    lacking = [pattern for pattern in needed if not _files(folder, pattern)]
    if lacking:
        raise ForgeError(
            "is not a model as it is published in pieces: files are missing",
            file=name,
            key=option,
            expected=", ".join(lacking),
            hint=f"name a folder that `save_pretrained` made, or a repository: --set {option}=…",
        )
    return folder


@cache
def digest_of(folder: Path, needed: tuple[str, ...]) -> str:
    """The SHA-256 of the names and SHA-256 of the needed files; read once in a process."""
    files = sorted({file for pattern in needed for file in _files(folder, pattern)})
    lines = [f"{sha256_of(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def loaded(of: Any, folder: Path, **how: Any) -> Any:
    """The model of a class of diffusers or transformers, from files on this machine, with all its weights.

    Raises:
        ForgeError: where files of the folder are not of that class, or lack weights, which would else be random.
    """
    try:
        with quiet():
            model, found = of.from_pretrained(folder, local_files_only=True, output_loading_info=True, **how)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ForgeError("cannot be loaded", file=folder, key=of.__name__, found=_first_line(error)) from error
    lacking = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if lacking:
        raise ForgeError("weights are missing", file=folder, key=of.__name__, expected=", ".join(lacking[:3]))
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def quiet() -> Iterator[None]:
    """Models are loaded without bars, and without a table of what their files have beyond what is taken."""
    from transformers.utils import logging

    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def _fetched(hub_id: HubId, needed: Sequence[str], option: str) -> Path:
    try:
        with told(hub_id):
            folder = _snapshot(hub_id, [pattern.split("|")[0] for pattern in needed])
            others = [pattern.split("|")[1] for pattern in needed if "|" in pattern and not _files(folder, pattern)]
            return _snapshot(hub_id, others) if others else folder
    except AdapterError as error:
        hint = f"{error.hint}; or name a folder that has it: --set {option}=DIR"
        raise ForgeError(error.what, file=error.file, key=option, found=error.found, hint=hint) from error


def _snapshot(hub_id: HubId, patterns: Sequence[str]) -> Path:
    return Path(client().snapshot_download(hub_id.repo, revision=hub_id.revision, allow_patterns=list(patterns)))


def _files(folder: Path, pattern: str) -> list[Path]:
    """The files of the first alternative that has any."""
    for one in pattern.split("|"):
        files = [file for file in folder.glob(one) if file.is_file()]
        if files:
            return files
    return []
