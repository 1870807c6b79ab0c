"""Published models: a folder of the user's own or a snapshot of a repository of the Hub, checked and known by hash.

Of a repository only the files that are named are fetched: weights in safetensors, configurations and vocabularies. A
pattern ``a|b`` takes b where there is no a; b may be a pickled file, which is then read by PyTorch's unpickler that
builds tensors and nothing else.

The files may come from anyone. None of them chooses what is executed, or names weights that are not hashed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lorascope.errors import AdapterError, ForgeError
from lorascope.formats.hub import HubId, client, parse_hub_id, told
from lorascope.zoo.store import sha256_of

Kind = Literal["model", "dataset"]


def folder_of(name: str, needed: Sequence[str], option: str) -> Path:
    """The folder with the needed files: the one of that path, or else of the repository ``owner/name[@revision]``.

    Args:
        name: path or repository.
        needed: patterns of paths in the folder; there must be a file for each.
        option: the option of the recipe that names it, for messages.

    Raises:
        ForgeError: where there is no such folder or repository, or it has not what is needed.
    """
    folder = place_of(name, needed, option)
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


def place_of(name: str, patterns: Sequence[str], option: str, kind: Kind = "model") -> Path:
    """The folder of that path, or else a snapshot of the repository ``owner/name[@revision]``, whatever it has.

    Args:
        name: path or repository.
        patterns: of paths in the folder: what is fetched of a repository.
        option: the option of the recipe that names it, for messages.
        kind: of the repository.

    Raises:
        ForgeError: where there is no such folder or repository.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    hub_id = parse_hub_id(name)
    if hub_id is None:
        raise ForgeError(
            "there is no such folder",
            key=option,
            expected="a folder, or owner/name of a repository of the Hub",
            found=name,
            hint=f"name one that has {', '.join(patterns)}: --set {option}=DIR",
        )
    return _fetched(hub_id, patterns, option, kind)


@cache
def digest_of(folder: Path, needed: tuple[str, ...]) -> str:
    """The SHA-256 of the names and SHA-256 of the needed files; read once in a process."""
    files = sorted(_needed_files(folder, needed))
    lines = [f"{sha256_of(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def loaded(of: Any, folder: Path, needed: Sequence[str], **how: Any) -> Any:
    """The model of a class of diffusers or transformers, from files on this machine, with all its weights.

    Args:
        of: the class.
        folder: with its files, or with ``subfolder`` that has them.
        needed: the patterns that the folder's hash is of.
        **how: for ``from_pretrained``.

    Raises:
        ForgeError: where files of the folder are not of that class, or lack weights, which would else be random; where
            they name weights that are not hashed, or ask for more than the class.
    """
    _check_files(folder, folder / how.get("subfolder", ""), needed)
    model, found = loaded_part(of, folder, output_loading_info=True, **how)
    lacking = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if lacking:
        raise ForgeError("weights are missing", file=folder, key=of.__name__, expected=", ".join(lacking[:3]))
    return model


def loaded_part(of: Any, folder: Path, **how: Any) -> Any:
    """What a class reads from files on this machine: a model, its tokens, a configuration, a schedule.

    Raises:
        ForgeError: where it cannot, whatever is raised: the files may hold anything.
    """
    try:
        with quiet():
            return of.from_pretrained(folder, local_files_only=True, **how)
    except Exception as error:  # what libraries raise for damaged files is not of few kinds
        place = folder / how.get("subfolder", "")
        raise ForgeError("cannot be loaded", file=place, key=of.__name__, found=cause(error)) from error


def cause(error: Exception) -> str:
    """The kind of an error and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


_ASKS = {
    "transformers_weights": "the weights are in another file",
    "quantization_config": "the weights are quantised",
    "compression_config": "the weights are compressed",
}
"""Keys of a configuration that make more of a model than its class, and what they say."""


def _check_files(folder: Path, place: Path, needed: Sequence[str]) -> None:
    """See that the files of a model in ``place`` ask for nothing but the class and the hashed weights."""
    if (place / "adapter_config.json").exists():
        raise ForgeError(
            "an adapter lies beside the model, which would be put on it", file=place, found="adapter_config.json"
        )
    config = _object(place / "config.json")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key, says in _ASKS.items():
            if part.get(key) is not None:
                raise ForgeError(f"{says}, and only whole ones are taken", file=place / "config.json", key=key)
    hashed = {file.name for file in _needed_files(folder, needed) if file.parent == place}
    # these would be taken before all others
    distributed = next((file for file in place.glob("shard-*-model-*.safetensors") if file.name not in hashed), None)
    if distributed is not None:
        raise ForgeError("weights are there that are not among the hashed files", file=distributed)
    for index in place.glob("*.safetensors.index.json"):
        shards = _object(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ForgeError("is no index of weights", file=index, key="weight_map", expected="an object")
        outside = next((shard for shard in shards.values() if not isinstance(shard, str) or shard not in hashed), None)
        if outside is not None:
            raise ForgeError(
                "names weights that are not among the hashed files",
                file=index,
                key="weight_map",
                expected="names of files of the folder",
                found=outside,
            )


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        if not file.is_file():
            raise FileNotFoundError("there is no such file")
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ForgeError("cannot be read as JSON", file=file, found=cause(error)) from error
    if not isinstance(found, dict):
        raise ForgeError("is no JSON object", file=file, found=type(found).__name__)
    return found


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


def _fetched(hub_id: HubId, patterns: Sequence[str], option: str, kind: Kind) -> Path:
    def snapshot(chosen: Sequence[str]) -> Path:
        return Path(
            client().snapshot_download(
                hub_id.repo, repo_type=kind, revision=hub_id.revision, allow_patterns=list(chosen)
            )
        )

    try:
        with told(hub_id):
            folder = snapshot([pattern.split("|")[0] for pattern in patterns])
            others = [pattern.split("|")[1] for pattern in patterns if "|" in pattern and not _files(folder, pattern)]
            return snapshot(others) if others else folder
    except AdapterError as error:
        revision = f" --revision {hub_id.revision}" if hub_id.revision else ""
        command = f"hf download {hub_id.repo} --repo-type {kind}{revision} --local-dir DIR"
        hint = f"{error.hint}; or name a folder that has it: --set {option}=DIR, such as one made by `{command}`"
        raise ForgeError(error.what, file=error.file, key=option, found=error.found, hint=hint) from error


def _needed_files(folder: Path, needed: Sequence[str]) -> set[Path]:
    return {file for pattern in needed for file in _files(folder, pattern)}


def _files(folder: Path, pattern: str) -> list[Path]:
    """The files of the first alternative that has any."""
    for one in pattern.split("|"):
        files = [file for file in folder.glob(one) if file.is_file()]
        if files:
            return files
    return []
