"""What a checkpoint on disk is called, so that adapters that are made of it name the base that others of it name.

The first that there is: what a forged zoo calls its base, the repository in the hub's cache, ``_name_or_path`` of the
configuration, the name of the folder or file. Text of a configuration that is no name, such as a path, is passed over.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from lorascope.formats.config_file import read_config

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)
_CACHED = re.compile(r"models--((?P<owner>\w[\w.-]*?)--)?(?P<name>\w[\w.-]*)", re.ASCII)
_WEIGHTS = "model.safetensors"


def forged_base_name(recipe: str, sha256: str) -> str:
    """The name of a base that a recipe made, by the hash of its file.

    >>> forged_base_name("digits-vit", "994124729800c0ffee")
    'digits-vit/994124729800'
    """
    return f"{recipe}/{sha256[:12]}"


def base_name_of(location: Path) -> str:
    """The name of the base in a folder, or of the one that a file of weights is.

    Raises:
        AdapterError: where its configuration is no JSON object.
    """
    path = location.absolute()  # a file of the hub's cache is a link to one that is named by its hash
    folder = path if path.is_dir() else path.parent
    return next(_stated(folder), path.resolve().name if path.is_dir() else path.name)


def _stated(folder: Path) -> Iterator[str]:
    files = [path for name in ("config.json", "model_index.json") if (path := folder / name).is_file()]
    configs = [read_config(path)[0] for path in files]
    for config in configs:
        recipe, found = _name(config, "recipe"), config.get("found")
        if not recipe or "schema_version" not in config:
            continue
        if published := _name(cast("dict[str, Any]", found), "model") if isinstance(found, dict) else "":
            yield published
        elif (folder / _WEIGHTS).is_file():
            with (folder / _WEIGHTS).open("rb") as stream:
                yield forged_base_name(recipe, hashlib.file_digest(stream, "sha256").hexdigest())
    if folder.parent.name == "snapshots" and (match := _CACHED.fullmatch(folder.parent.parent.name)):
        yield f"{match['owner']}/{match['name']}" if match["owner"] else match["name"]
    yield from (name for config in configs if (name := _name(config, "_name_or_path")))


def _name(config: Mapping[str, Any], key: str) -> str:
    """What a field says, if it is a name; else the empty text."""
    value = config.get(key)
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""
