"""A base model on the hub: names, shapes and dtypes of its weights by HTTP ranges, from the headers of its shards.

Which files are the weights is told as of a folder, by the index where there is one. Fetched are the index, config.json
and one piece of each file. No tensor has values: a checkpoint of headers can be checked against and not be baked into.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lorascope.errors import AdapterError
from lorascope.formats.checkpoint import MAX_INDEX, Checkpoint, weights_names
from lorascope.formats.config_file import mapping, read_config
from lorascope.formats.contents import TensorFile
from lorascope.formats.headers import placeholder
from lorascope.formats.hub import HubFile, HubId, client, listed_files, parse_hub_id, told
from lorascope.formats.remote_file import NoRangesError, RemoteFile
from lorascope.formats.safetensors_file import read_header, read_safetensors
from lorascope.formats.source import exists

MAX_FILES = 1024
"""Weights files of one model; the largest published ones have some two hundred."""


def open_headers(location: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint at a path or hub id; of the hub no tensor has values.

    Args:
        location: a folder, a file, or ``owner/name[@revision][:subfolder]``; an existing path always wins.

    Raises:
        AdapterError: as ``Checkpoint.open``, and where the hub has no such model or cannot be reached.
    """
    hub_id = None if exists(location) else parse_hub_id(os.fspath(location))
    if hub_id is None:
        return Checkpoint.open(location)
    with told(hub_id):
        return _of_hub(hub_id)


def _of_hub(hub_id: HubId) -> Checkpoint:
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        all_files, commit = listed_files(hub_id)
    except (OfflineModeIsEnabled, OSError):
        folder = _cached_folder(hub_id)
        if folder is None:
            raise
        return Checkpoint.open(folder)
    prefix = f"{hub_id.subfolder}/" if hub_id.subfolder else ""
    names = [name[len(prefix) :] for name in all_files if name.startswith(prefix)]
    revision = commit or hub_id.revision

    def downloaded(name: str) -> Path:
        return Path(client().hf_hub_download(hub_id.repo, prefix + name, revision=revision))

    def shards_of(index: str) -> set[str]:
        value, _ = read_config(downloaded(index), limit=MAX_INDEX)
        return {str(name) for name in mapping(value, "weight_map").values()}

    try:
        found = weights_names(names, shards_of)
    except AdapterError as error:
        error.file = error.file or str(hub_id)
        raise
    if not 0 < len(found) <= MAX_FILES:
        raise AdapterError(
            "the repository holds no base model in safetensors at this place" if not found else "too many files",
            file=hub_id,
            expected=f"1 to {MAX_FILES} safetensors files, beside an index or in the folders of a pipeline",
            found=f"{len(found)} of {len(names)} files",
            hint="give the base that the adapter was made for, in safetensors",
        )
    files = {HubFile(hub_id, prefix + name, revision, None): tensor_prefix for name, tensor_prefix in found.items()}
    with ThreadPoolExecutor(8) as pool:
        contents = dict(zip(files, pool.map(_headers, files), strict=True))
    return Checkpoint.of(
        Path(str(hub_id)),
        {Path(str(file)): tensor_prefix for file, tensor_prefix in files.items()},
        {Path(str(file)): content for file, content in contents.items()},
        {
            tensor_prefix: downloaded(config)
            for name, tensor_prefix in found.items()
            if (config := f"{name.rpartition('/')[0]}/config.json".lstrip("/")) in names
        },
        hub_id.subfolder.rpartition("/")[2],
    )


def _headers(file: HubFile) -> TensorFile:
    """The tensors of a file without values; those of the file in the cache where that holds it."""
    from huggingface_hub import try_to_load_from_cache

    here = try_to_load_from_cache(file.hub_id.repo, file.name, revision=file.revision)
    if isinstance(here, str):
        return read_safetensors(Path(here))
    try:
        remote = RemoteFile(file)
        header = read_header(remote, remote.size, file)
    except NoRangesError as error:
        raise AdapterError(
            f"the headers of the base cannot be read alone: {error}",
            file=file,
            hint="download the base, and give its folder",
        ) from None
    return TensorFile({name: placeholder(one.dtype, one.shape) for name, one in header.places.items()}, header.metadata)


def _cached_folder(hub_id: HubId) -> Path | None:
    """The folder in the cache that holds the configuration of the model, where it was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    prefix = f"{hub_id.subfolder}/" if hub_id.subfolder else ""
    for name in ("config.json", "model_index.json", "model.safetensors", "model.safetensors.index.json"):
        found = try_to_load_from_cache(hub_id.repo, prefix + name, revision=hub_id.revision)
        if isinstance(found, str):
            return Path(found).parent
    return None
