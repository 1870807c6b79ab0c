"""Adapters on the Hugging Face hub: ``owner/name[@revision][:subfolder]`` → a file in the hub's own cache.

``download`` fetches the whole file, ``located`` only says where it is, so that pieces of it can be fetched
(``remote_file``). The client is imported only when a hub id is asked for. It honours HF_ENDPOINT, HF_TOKEN,
HF_HUB_OFFLINE and the cache.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lorascope.errors import AdapterError

_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?(?::(?P<subfolder>[^:]+))?"
)


@dataclass(frozen=True)
class HubId:
    """A repository, a revision (branch, tag or commit) and a folder inside it."""

    repo: str
    revision: str | None = None
    subfolder: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}{':' + self.subfolder if self.subfolder else ''}"


def parse_hub_id(text: str) -> HubId | None:
    """The hub id that a text spells, or None.

    >>> parse_hub_id("owner/name@v1:checkpoint-90")
    HubId(repo='owner/name', revision='v1', subfolder='checkpoint-90')
    >>> parse_hub_id("some/deep/path") is None, parse_hub_id("owner/a.safetensors") is None
    (True, True)
    """
    match = _HUB_ID.fullmatch(text)
    if match is None or text.endswith((".safetensors", ".bin", ".pt", ".pth", ".npz", ".json", ".gguf")):
        return None
    subfolder = (match["subfolder"] or "").strip("/")
    if ".." in subfolder.split("/"):
        return None
    return HubId(match["repo"], match["revision"], subfolder)


@dataclass(frozen=True)
class HubFile:
    """A weights file of a repository, at one commit where the hub tells it, and its configuration in the cache."""

    hub_id: HubId
    name: str
    revision: str | None
    config: Path | None

    def __str__(self) -> str:
        return f"{self.hub_id.repo}{'@' + self.hub_id.revision if self.hub_id.revision else ''}/{self.name}"


def download(hub_id: HubId) -> Path:
    """The weights file in the local cache, its configuration beside it.

    Raises:
        AdapterError: where the repository, revision or folder is not there, is gated, or cannot be reached.
    """
    found = located(hub_id)
    if isinstance(found, Path):
        return found
    with told(hub_id):
        return Path(client().hf_hub_download(hub_id.repo, found.name, revision=hub_id.revision))


def located(hub_id: HubId) -> HubFile | Path:
    """Which file of the repository is the adapter; its path in the cache where that holds it and it is current.

    The configuration beside it is downloaded.

    Raises:
        AdapterError: as ``download``.
    """
    with told(hub_id):
        return _located(hub_id)


def listed_files(hub_id: HubId) -> tuple[list[str], str | None]:
    """The names of all files of the repository, and the commit that they are of where the hub tells it."""
    # one request; the client's own listing of files retries for half a minute where there is no connection
    info = client().HfApi().model_info(hub_id.repo, revision=hub_id.revision, timeout=30)
    return [sibling.rfilename for sibling in info.siblings or ()], info.sha if isinstance(info.sha, str) else None


def client() -> Any:
    """The hub's client; its annotations are not complete."""
    return importlib.import_module("huggingface_hub")


@contextmanager
def told(hub_id: HubId, *, is_place: bool = True) -> Generator[None]:
    """What the client raises, as one error that says what to do.

    Args:
        hub_id: what was asked for.
        is_place: whether it was given where a local path could be, and taken for a hub id since there is none.

    Raises:
        AdapterError: for every error of the client.
    """
    from huggingface_hub import errors

    absent = "no such local path, and " if is_place else ""
    no_connection = cast("Any", errors).HTTPError  # that of the HTTP client of the hub's own choice

    try:
        yield
    except errors.GatedRepoError as error:
        raise _error(hub_id, "the repository is gated", "accept its terms on the hub, and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise _error(hub_id, "the hub has no such revision", "give a branch, tag or commit") from error
    except errors.RepositoryNotFoundError as error:
        raise _error(
            hub_id, f"{absent}the hub has no such repository", "is it private? then set HF_TOKEN", code="not-found"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _error(
            hub_id,
            f"{absent}as a hub id it is not in the cache, and the hub cannot be reached",
            "is the path mistyped? else unset HF_HUB_OFFLINE",
        ) from error
    except errors.HFValidationError as error:
        raise _error(hub_id, f"{absent}no valid hub id", "use owner/name", code="not-found") from error
    except (errors.HfHubHTTPError, no_connection, OSError) as error:
        hint = ("is the path mistyped? else " if is_place else "") + "check the connection and HF_ENDPOINT"
        raise _error(hub_id, f"{absent}the hub cannot be reached", hint, error) from error
    except (AttributeError, TypeError, KeyError, ValueError) as error:  # an answer that the client cannot parse
        raise _error(hub_id, f"{absent}the answer is not that of a hub", "check HF_ENDPOINT", error) from error


def _error(hub_id: HubId, what: str, hint: str, found: object = None, *, code: str = "no-hub") -> AdapterError:
    line = None if found is None else (str(found).strip().splitlines() or [type(found).__name__])[0][:200]
    return AdapterError(what, file=hub_id, found=line, hint=hint, code=code)


def _located(hub_id: HubId) -> HubFile | Path:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import OfflineModeIsEnabled

    from lorascope.formats.source import CONFIG_NAME, chosen_name

    try:
        files, commit = listed_files(hub_id)
    except (OfflineModeIsEnabled, OSError):
        cached = _cached(hub_id)
        if cached is None:
            raise
        return cached
    prefix = f"{hub_id.subfolder}/" if hub_id.subfolder else ""
    names = [file[len(prefix) :] for file in files if file.startswith(prefix) and "/" not in file[len(prefix) :]]
    name = chosen_name(names)
    if name is None:
        folders = sorted({file.rsplit("/", 1)[0] for file in files if chosen_name([file.rsplit("/", 1)[-1]])} - {""})
        raise AdapterError(
            "the repository holds no single adapter at this place",
            file=hub_id,
            found=", ".join(sorted(names)[:5]) or "no files",
            hint=f"try {hub_id.repo}:{folders[0]}" if folders and "/" in "".join(files) else None,
        )
    config = None
    if CONFIG_NAME in names:
        config = Path(client().hf_hub_download(hub_id.repo, prefix + CONFIG_NAME, revision=hub_id.revision))
    here = try_to_load_from_cache(hub_id.repo, prefix + name, revision=commit) if commit else None
    return Path(here) if isinstance(here, str) else HubFile(hub_id, prefix + name, commit or hub_id.revision, config)


def _cached(hub_id: HubId) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    from lorascope.formats.source import WEIGHTS_NAMES

    prefix = f"{hub_id.subfolder}/" if hub_id.subfolder else ""
    for name in WEIGHTS_NAMES:
        found = try_to_load_from_cache(hub_id.repo, prefix + name, revision=hub_id.revision)
        if isinstance(found, str):
            return Path(found)
    return None
