"""``fetched``: the files of a published model or data set, from a local folder or from the hub.

A setting names a folder, or ``owner/name@revision`` of the hub. What was found is known by its hash, so that neither a
revision that moves nor a folder that is changed goes unseen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from lorascope.errors import AdapterError, ForgeError
from lorascope.formats.hub import client, parse_hub_id, told
from lorascope.zoo.store import sha256_of


@dataclass(frozen=True)
class Fetched:
    """A folder of files.

    Args:
        name: of the repository, or the folder as it was given.
        revision: the commit; empty for a folder of the user's own.
        folder: where the files are.
    """

    name: str
    revision: str
    folder: Path

    def sha256(self, files: Sequence[Path]) -> str:
        """One hash of the names and contents of some of the files."""
        parts = [f"{file.relative_to(self.folder).as_posix()} {sha256_of(file)}\n" for file in sorted(files)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


@cache
def fetched(setting: Literal["model", "data"], given: str, patterns: tuple[str, ...]) -> Fetched:
    """The files that a setting names, downloaded into the hub's cache where they are not local.

    Args:
        setting: ``model``, or ``data`` for a repository of data.
        given: a folder, or ``owner/name`` or ``owner/name@revision``.
        patterns: of the names of the files that are downloaded.

    Raises:
        ForgeError: where there is neither, or the hub cannot be reached or refuses; names the command that helps.
    """
    local = Path(given).expanduser()
    if local.is_dir():
        return Fetched(given, "", local)
    hub_id = parse_hub_id(given)
    if hub_id is None or hub_id.subfolder:
        raise ForgeError(
            "there is no such folder, and it is no repository of the hub",
            key=setting,
            expected="a folder, or owner/name@revision",
            found=given,
            hint=f"--set {setting}=DIR",
        )
    kind = "dataset" if setting == "data" else "model"
    try:
        with told(hub_id):
            folder = client().snapshot_download(
                hub_id.repo, repo_type=kind, revision=hub_id.revision, allow_patterns=list(patterns)
            )
    except AdapterError as error:
        revision = f" --revision {hub_id.revision}" if hub_id.revision else ""
        command = f"hf download {hub_id.repo} --repo-type {kind}{revision}"
        raise ForgeError(
            error.what,
            file=hub_id,
            key=setting,
            found=error.found,
            hint=f"{error.hint}; or download it elsewhere ({command} --local-dir DIR) and give --set {setting}=DIR",
        ) from error
    return Fetched(hub_id.repo, Path(folder).name, Path(folder))
